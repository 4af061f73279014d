import type { RulesView, SeriesView } from "../api/types";

/** Score of a thing that the headers do not name: behind every series that names it. */
const LAST = 1e9;

export const canBeChosen = (series: Pick<SeriesView, "selection">): boolean => series.selection?.parts.some((part) => part.can_be_chosen) === true;

export function scoreWords(score: number | null): string {
  if (score === null) return "";
  return score >= LAST ? "last" : String(Number(score.toFixed(2)));
}

/** What turned the choice stands out; what merely passed does not. */
export function effectTone(effect: string): string {
  if (effect === "refused" || effect === "disagrees") return "bad";
  if (effect === "passed" || effect === "ranked") return "hint";
  return "turned";
}

export const rulesWords = ({ rules_id, version, sha256, purpose }: RulesView): string =>
  `Rules ${rules_id}, version ${version} (${sha256.slice(0, 12)}), for ${purpose}. Of those that rank, the lowest score wins.`;
