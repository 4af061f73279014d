import { useMutation, useQueryClient } from "@tanstack/react-query";
import { completeStudy } from "../api/client";
import type { StudyDetail } from "../api/types";
import { canComplete, closedWords, cutOff, keptWords, replacedWords } from "../lib/completion";
import { columnTime, counted, doorName, zoneName } from "../lib/format";
import { Link } from "../router";
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
  const cut = cutOff(study);
  if (closed === null && kept === null && replaced === null && cut === null && study.uid_conflicts === 0) return null;
  return (
    <section>
      <h2>Images</h2>
      {closed !== null && <p className="mute" data-testid="closed">{closed}</p>}
      {cut !== null && <Why code={cut} />}
      {study.uid_conflicts > 0 && <Conflicts detail={detail} />}
      {kept !== null && <p data-testid="kept">{kept}</p>}
      {replaced !== null && <p data-testid="replaced">{replaced}</p>}
    </section>
  );
}

/** Images that share their SOP Instance UID and nothing else: which they are, and who sent them. */
function Conflicts({ detail }: { detail: StudyDetail }) {
  const { study, uid_conflicts: images } = detail;
  const now = new Date();
  return (
    <div data-testid="uid-conflicts">
      <span className="pill small urg">{counted(study.uid_conflicts, "UID CONFLICT", "UID CONFLICTS")}</span>
      <Why code="sop_uid_conflict" />
      <details>
        <summary>Images ({images.length})</summary>
        <div className="wrap">
          <table>
            <thead><tr><th scope="col">SOP Instance UID</th><th scope="col">SHA-256</th><th scope="col">From</th><th scope="col" className="num">Received {zoneName(now)}</th></tr></thead>
            <tbody>
              {images.map((image) => (
                <tr key={`${image.study_uid} ${image.sop_uid} ${image.sha256}`}>
                  <td className="mono">{image.sop_uid}{image.study_uid !== study.study_uid && <div className="hint">in <Link to={`/studies/${image.study_uid}`}>another study</Link></div>}</td>
                  <td className="mono" title={image.sha256}>{image.sha256.slice(0, 12)}</td>
                  <td>{[image.calling_ae ?? doorName(image.door), image.address].filter((part) => part !== null).join(" ")}</td>
                  <td className="num">{columnTime(image.received_at, now)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      </details>
    </div>
  );
}
