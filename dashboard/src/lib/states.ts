import type { HistoryView, StatusView, StudySummary } from "../api/types";
import { startsWords } from "./completion";
import { clockTime, counted } from "./format";

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

/** What tells a reader that the numbers on the page are not those of the study as it is; null where they are. */
export function olderResultWords(
  study: Pick<StudySummary, "state" | "n_instances">,
  result: { stale: boolean; n_images: number } | null,
): string | null {
  if (result === null || !result.stale) return null;
  const parts = study.n_instances > result.n_images ? ["new images arrived"] : [];
  if (study.state === "failed") parts.push("the newer run failed");
  else if (study.state === "not_applicable") parts.push("the newer run did not apply");
  else if (study.state === "cancelled") parts.push("the newer run was cancelled");
  else if (study.state === "superseded") parts.push("a newer version of the study replaces this one");
  else if (parts.length === 0) parts.push("a newer run has begun");
  const from = study.n_instances > result.n_images ? `${result.n_images} of ${counted(study.n_instances, "image")}` : "an earlier run on the same images";
  return `Older result: ${parts.join(" and ")}. These numbers are from ${from}.`;
}

/** One sentence or two that tell the reader what to expect of this study now; null where its results speak. */
export function stateSentence(
  study: Pick<StudySummary, "state" | "step" | "completion">,
  older = false,
  status?: Pick<StatusView, "settle_after_release_seconds">,
): string | null {
  switch (study.state) {
    case "receiving":
      return `Images are still coming in. ${startsWords(study, status)}`;
    case "settling":
      return `No new image for a while. ${startsWords(study, status)}`;
    case "queued":
      return "Complete and waiting for a free worker.";
    case "running":
      return `Being analysed now${study.step === null ? "" : ` (${study.step})`}. This page fills in by itself.`;
    case "failed":
      return `Analysis failed. No measurement was made${older ? " of the study as it is now" : ""}; read the study without it.`;
    case "not_applicable":
      return "Analysis does not apply to this study. This is not a negative finding.";
    case "cancelled":
      return "Analysis was cancelled. No measurement was made; read the study without it.";
    case "superseded":
      return "A newer version of this study replaces this one.";
    default:
      return null;
  }
}

/** Why a study has none of `what`: it never will, or not yet. */
export function noneWords(what: string, state: string): string {
  switch (state) {
    case "failed":
      return `No ${what}: the analysis failed.`;
    case "not_applicable":
      return `No ${what}: the analysis does not apply to this study.`;
    case "cancelled":
      return `No ${what}: the analysis was cancelled.`;
    case "superseded":
      return `No ${what}: a newer version of this study replaces this one.`;
    case "done":
      return `No ${what}: this result has none.`;
    default:
      return `No ${what} yet.`;
  }
}

/** How many attempts the study took; null where the first one is or was enough. */
export function attemptWords({ attempt, max_attempts: most }: { attempt: number; max_attempts: number }, state: string): string | null {
  if (attempt <= 1) return null;
  if (state === "failed") return attempt >= most ? `All ${most} attempts failed.` : `Attempt ${attempt} failed for a reason that another one cannot change.`;
  return state === "queued" || state === "running" ? `Attempt ${attempt} of at most ${most}.` : `It took ${attempt} attempts.`;
}

/** What went wrong in the last of several attempts, and its words; null where that is the study's own reason. */
export function behindExhaustion(
  study: Pick<StudySummary, "reason_code" | "reason">,
  job: { error_code: string | null } | null,
): { code: string; detail: string | null } | null {
  const code = job?.error_code ?? null;
  if (study.reason_code !== "attempts_exhausted" || code === null) return null;
  return { code, detail: study.reason?.replace(`${code}: `, "") ?? null };
}

/** States that stay as they are until a person asks for another run. */
export const canRetry = (state: string): boolean => ["failed", "not_applicable", "cancelled"].includes(state);

/** Reasons that another run on the same images cannot change; `heimdallr retry` remains for changed rules or settings. */
const RETRY_IS_VAIN = new Set(["no_usable_series"]);

/** False where another run would end as the last one did. */
export const retryHelps = (study: Pick<StudySummary, "state" | "reason_code">): boolean => canRetry(study.state) && !RETRY_IS_VAIN.has(study.reason_code ?? "");

/** That the last retry changed nothing; null where there was none, or it ended otherwise. */
export function retriedWords(study: Pick<StudySummary, "state" | "reason">, history: HistoryView[], now: Date): string | null {
  const retry = history.findLast((item) => item.kind === "study.retry");
  if (retry === undefined || retry.old !== study.state || retry.reason !== study.reason) return null;
  return `Retried at ${clockTime(retry.at, now)}, same result.`;
}

/** States in which another series may be chosen: nothing happens any more by itself. */
export const canChoose = (state: string): boolean => state === "done" || canRetry(state);

export const STATES = ["receiving", "settling", "queued", "running", "done", "failed", "not_applicable", "cancelled", "superseded"];
