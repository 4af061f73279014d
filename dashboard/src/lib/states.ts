import type { StudySummary } from "../api/types";

/** A study's state in words, with the running step or the reason. */
export function stateWords(study: Pick<StudySummary, "state" | "step" | "reason" | "reason_code">): string {
  switch (study.state) {
    case "receiving":
      return "receiving images";
    case "settling":
      return "waiting for more images";
    case "running":
      return study.step === null ? "running" : `running: ${study.step}`;
    case "not_applicable":
      return "not applicable";
    default:
      return study.state;
  }
}

export function stateTone(state: string): string {
  return { done: "ok", failed: "crit", running: "ai", queued: "plain", receiving: "plain", settling: "plain" }[state] ?? "none";
}

/** One sentence or two that tell the reader what to expect of this study now; null where its results speak. */
export function stateSentence(study: Pick<StudySummary, "state" | "step" | "reason" | "reason_code">): string | null {
  const because = study.reason ?? study.reason_code ?? "no reason was recorded";
  switch (study.state) {
    case "receiving":
      return "Images are still coming in. Analysis starts when the study is complete.";
    case "settling":
      return "No new image for a while. Analysis starts when the study counts as complete.";
    case "queued":
      return "Complete and waiting for a free worker.";
    case "running":
      return `Being analysed now${study.step === null ? "" : ` (${study.step})`}. This page fills in by itself.`;
    case "failed":
      return `Analysis failed: ${because}. No measurement was made; read the study without it.`;
    case "not_applicable":
      return `Analysis does not apply to this study: ${because}. This is not a negative finding.`;
    case "cancelled":
      return `Analysis was cancelled: ${because}.`;
    case "superseded":
      return "A newer version of this study replaces this one.";
    default:
      return null;
  }
}

export const STATES = ["receiving", "settling", "queued", "running", "done", "failed", "not_applicable", "cancelled", "superseded"];
