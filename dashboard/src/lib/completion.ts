import type { OlderResultView, ResultSummary, StatusView, StudySummary } from "../api/types";
import { clockTime, counted, exactTime } from "./format";

type Received = Pick<StudySummary, "state" | "completion" | "closed_at" | "n_instances">;

/** States in which a person may say that the study is complete. */
export const canComplete = (state: string): boolean => state === "receiving" || state === "settling";

/** When the analysis of a study that is being received will start, and why then. */
export function startsWords(study: Pick<StudySummary, "state" | "completion">, status: Pick<StatusView, "settle_after_release_seconds"> | undefined): string {
  const plan = study.completion;
  if (plan !== null && plan.closes_at !== null) {
    const at = exactTime(plan.closes_at);
    if (brokenOff(study)) return `Its last transfer was broken off: images may be missing. If nothing more comes until ${at}, it is analysed with what is here: ${plan.reason}.`;
    if (plan.code === "hard_maximum") return `It is closed at ${at}, whatever comes: ${plan.reason}.`;
    return `Analysis starts at ${at} if nothing more comes: ${plan.reason}.`;
  }
  const starts = status === undefined ? "when the study counts as complete" : `${status.settle_after_release_seconds} s after the last image, once the sender has ended; later where it was cut off`;
  return `Analysis starts ${starts}.${plan === null ? "" : ` Now: ${plan.reason}.`}`;
}

/** Why a study was closed; null where that is not known. */
export function closedWords(study: Received, now: Date): string | null {
  if (study.completion === null || study.closed_at === null) return null;
  return `Closed at ${clockTime(study.closed_at, now)} with ${counted(study.n_instances, "image")}: ${study.completion.reason}.`;
}

/** What holds a study open, in two words; null where nobody does. */
export function heldWords(study: Pick<StudySummary, "completion">): string | null {
  return { sending: "sender connected", upload_open: "upload open" }[study.completion?.code ?? ""] ?? null;
}

/** That the last transfer of a study that is still open was broken off: it may come again, and nothing was closed without it yet. */
export const brokenOff = (study: Pick<StudySummary, "state" | "completion">): boolean => canComplete(study.state) && study.completion?.code === "idle_after_abort";

/** Why images may be missing in a closed study, a reason code: their transfer was broken off, went on for too long or had not ended. Null where nothing says so. */
export const cutOff = (study: Pick<StudySummary, "completion">): string | null => study.completion?.incomplete ?? null;

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
