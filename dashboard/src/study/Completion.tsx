import { useMutation, useQueryClient } from "@tanstack/react-query";
import { completeStudy } from "../api/client";
import type { StudyDetail } from "../api/types";
import { canComplete, closedWords, cutOff, keptWords, replacedWords } from "../lib/completion";
import { Why } from "../ui";
import { Ask } from "./Ask";

/** Closes a study that is still being received, whoever may be sending to it. */
export function CompleteNow({ uid }: { uid: string }) {
  const client = useQueryClient();
  const complete = useMutation({
    mutationFn: ({ reason, by }: { reason: string; by: string }) => completeStudy(uid, { reason, completed_by: by }),
    onSettled: () => {
      for (const queryKey of [["study", uid], ["studies"], ["status"]]) void client.invalidateQueries({ queryKey });
    },
  });
  return <Ask label="It is complete: analyse it now" testId="complete" failed="It was not closed" pending={complete.isPending} error={complete.error} send={(reason, by) => complete.mutateAsync({ reason, by })} />;
}

/** Why the images count as all of them, and which version of the result is shown. */
export function Completion({ detail }: { detail: StudyDetail }) {
  const { study, result, older_results: older } = detail;
  const now = new Date();
  const closed = canComplete(study.state) ? null : closedWords(study, now);
  const kept = result === null ? null : keptWords(study, result);
  const replaced = result === null ? null : replacedWords(result, older, now);
  if (closed === null && kept === null && replaced === null) return null;
  return (
    <section>
      <h2>Images</h2>
      {closed !== null && <p className="mute" data-testid="closed">{closed}</p>}
      {cutOff(study) && study.completion !== null && <Why code={study.completion.code} />}
      {kept !== null && <p data-testid="kept">{kept}</p>}
      {replaced !== null && <p data-testid="replaced">{replaced}</p>}
    </section>
  );
}
