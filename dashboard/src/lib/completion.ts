import type { OlderResultView, ResultSummary, StatusView, StudySummary } from "../api/types";
import { clockTime, counted } from "./format";

type Received = Pick<StudySummary, "state" | "completion" | "closed_at" | "n_instances">;

/** States in which a person may say that the study is complete. */
export const canComplete = (state: string): boolean => state === "receiving" || state === "settling";

/** Times like 10:15:30: a wait is shorter than a minute. */
export function exactTime(iso: string): string {
  return new Date(iso).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
}

/** When the analysis of a study that is being received will start, and why then. */
export function startsWords(study: Pick<StudySummary, "state" | "completion">, status: Pick<StatusView, "settle_after_release_seconds"> | undefined): string {
  const plan = study.completion;
  if (study.state === "settling" && plan !== null && plan.closes_at !== null) return `Analysis starts at ${exactTime(plan.closes_at)} if nothing more comes: ${plan.reason}.`;
  if (status === undefined) return "Analysis starts when the study counts as complete.";
  return `Analysis starts ${status.settle_after_release_seconds} s after the last image, once the sender has ended; later where it was cut off.`;
}

/** Why a study was closed; null where that is not known. */
export function closedWords(study: Received, now: Date): string | null {
  if (study.completion === null || study.closed_at === null) return null;
  return `Closed at ${clockTime(study.closed_at, now)} with ${counted(study.n_instances, "image")}: ${study.completion.reason}.`;
}

/** True where images may be missing, because their transfer was broken off or went on for too long. */
export const cutOff = (study: Pick<StudySummary, "completion">): boolean => ["idle_after_abort", "hard_maximum"].includes(study.completion?.code ?? "");

/** That images came after the result was made and changed nothing; null where none came. */
export function keptWords(study: Pick<StudySummary, "n_instances">, result: Pick<ResultSummary, "kept_epoch" | "n_images" | "version" | "stale">): string | null {
  const late = study.n_instances - result.n_images;
  if (result.kept_epoch === null || result.stale || late <= 0) return null;
  return `${counted(late, "image")} came after the analysis and changed nothing that was measured: the result stands.`;
}

/** That the result took the place of another one; null where it is the first. */
export function replacedWords(result: Pick<ResultSummary, "version">, older: OlderResultView[], now: Date): string | null {
  const last = older[0];
  if (last === undefined) return null;
  return `Version ${result.version} of the result. It replaces version ${last.version} of ${clockTime(last.created_at, now)}, made from ${counted(last.n_images, "image")}.`;
}
