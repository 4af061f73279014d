import { useQuery } from "@tanstack/react-query";
import { useEffect, useState } from "react";
import { getBlob, getReasons } from "./api/client";
import { reasonOf, saysTheSame } from "./lib/reasons";
import { stateTone, stateWords } from "./lib/states";
import { studyUrgencyLook, type StudyUrgency } from "./lib/urgency";
import type { ArtifactView, StudySummary } from "./api/types";

export function UrgencyPill({ study }: { study: StudyUrgency }) {
  const { icon, word, tone, tip } = studyUrgencyLook(study);
  return (
    <span className={`pill ${tone}`} title={tip} data-urgency={study.urgency ?? "none"}>
      {icon !== "" && <span aria-hidden="true">{icon}</span>}
      {word}
    </span>
  );
}

export function StatePill({ study }: { study: StudySummary }) {
  return <span className={`pill small ${stateTone(study.state)}`} data-state={study.state}>{stateWords(study)}</span>;
}

export function Failure({ error }: { error: Error }) {
  return <div className="failure" role="alert">{error.message}</div>;
}

/** What a demo installation says of itself, and of itself only. */
export const DEMO_INSTALLATION = "AI results on this installation come from synthetic demo models and are not about any patient.";

const NO_SENTENCES: Record<string, string> = {};

/** The server's sentence for each reason code; none while they are not there. They change with its version only. */
export function useSentences(): Record<string, string> {
  const { data } = useQuery({ queryKey: ["reasons"], queryFn: ({ signal }) => getReasons(signal), staleTime: Infinity });
  return data?.reasons ?? NO_SENTENCES;
}

/** A reason in words, its code small beside it, and what the server adds to it: of this case, so it may `lead`. */
export function Why({ code, detail = null, lead = false }: { code: string; detail?: string | null; lead?: boolean }) {
  const { sentence } = reasonOf(code, useSentences());
  const more = detail !== null && detail !== "" && !saysTheSame(sentence, detail) ? detail : null;
  return (
    <div className="why" data-reason={code}>
      {lead && more !== null ? more : sentence} <code>{code}</code>
      {more !== null && <div className="hint">{lead ? sentence : more}</div>}
    </div>
  );
}

/** A picture fetched with our rights. `<img src>` cannot send a token; a new version of a file has a new key. */
export function ArtifactImage({ artifact, alt }: { artifact: ArtifactView; alt: string }) {
  const { data, error } = useQuery({
    queryKey: ["blob", artifact.sha256],
    queryFn: ({ signal }) => getBlob(artifact.url, signal),
    staleTime: Infinity,
    gcTime: 300_000,
  });
  const [url, setUrl] = useState<string | null>(null);
  useEffect(() => {
    if (data === undefined) return;
    const made = URL.createObjectURL(data);
    setUrl(made);
    // An image that is still being read when it is replaced must not lose its source.
    return () => void setTimeout(() => URL.revokeObjectURL(made), 10_000);
  }, [data]);
  if (error !== null) return <span className="waiting">This picture cannot be loaded: {error.message}</span>;
  return url === null ? null : <img src={url} alt={alt} data-artifact={artifact.name} draggable={false} />;
}
