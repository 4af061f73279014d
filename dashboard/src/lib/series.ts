import type { ChoiceView, RulesView, SeriesPartView, SeriesView } from "../api/types";

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

/** What was done about a tilt of the gantry in the image that was measured; null where it has none. */
export function tiltOf(flags: readonly string[]): "left in" | "taken out" | null {
  if (!flags.some((flag) => flag.startsWith("tilt:"))) return null;
  return flags.includes("deskewed") ? "taken out" : "left in";
}

/** Whether the headers of a part tell of a tilt of the gantry, measured or not. */
export const isTilted = (part: Pick<SeriesPartView, "lines">): boolean => part.lines.some((line) => line.rule === "geometry" && /\btilt:/.test(line.value));

/** What became of the series that was chosen: measured it is only where the study has the result of that run. */
export const chosenWords = (state: string, byPerson: boolean): string =>
  byPerson ? "chosen by a person" : state === "done" ? "measured" : "chosen by the rules";

/** A series as a reader knows it; its UID is for machines. */
export function seriesName(series: Pick<SeriesView, "series_number" | "series_description"> | undefined): string {
  if (series === undefined) return "a series";
  const number = series.series_number === null ? "" : `No. ${series.series_number} `;
  return `${number}${series.series_description ?? "without a description"}`.trim();
}

/** Who chose the series, and who asked about the tilt where that was another wish: what, who, when, why. */
export function wishesOf(named: string | null, choice: ChoiceView): { what: string; who: string; at: string; why: string }[] {
  const { chosen_by: who, chosen_at: at, reason: why } = choice;
  const { deskew_by, deskew_at, deskew_reason } = choice;
  if (deskew_by === null) return [{ what: choiceWords(named, choice), who, at, why }];
  return [
    { what: choiceWords(named, { ...choice, deskew: null }), who, at, why },
    { what: choiceWords(null, choice), who: deskew_by, at: deskew_at ?? at, why: deskew_reason ?? "" },
  ];
}

/** What a person chose; `named` is the series, null where the rules choose it. */
export function choiceWords(named: string | null, { part, deskew }: Pick<ChoiceView, "part" | "deskew">): string {
  const series = named === null ? "" : `chose ${named}${part === null ? "" : `, part ${part}`}`;
  const tilt = deskew === null ? "" : deskew ? "asked for the tilt to be taken out" : "asked for the tilt to be left in";
  return `A person ${[series, tilt].filter((words) => words !== "").join(" and ")}`;
}
