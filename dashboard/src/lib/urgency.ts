/** Urgency is told by icon, word and colour together, never by colour alone (WCAG 1.4.1). */

export interface UrgencyLook {
  icon: string;
  word: string;
  tone: string;
  /** What the word alone does not say. */
  tip?: string;
}

const LOOKS: Record<string, UrgencyLook> = {
  P0: { icon: "!!", word: "CRITICAL", tone: "crit" },
  P1: { icon: "▲", word: "URGENT", tone: "urg" },
  P2: { icon: "◆", word: "SOON", tone: "soon" },
  P3: { icon: "●", word: "ROUTINE", tone: "rout" },
};

const PLACE = "In the list it keeps the place of its order (STAT and HIGH stand with URGENT); without one it stands among the routine studies, first come, first read.";
export const NO_AI_URGENCY = `AI gives this study no urgency. That is not ROUTINE: nothing is known. AI may raise a study, never lower it. ${PLACE}`;
const PENDING = `AI has not judged this study yet. ${PLACE}`;
const ENDED = new Set(["done", "failed", "not_applicable", "cancelled", "superseded"]);

export interface StudyUrgency {
  urgency: string | null;
  state: string;
  urgency_older: boolean;
  urgency_reason: string | null;
}

/** Urgency of a study, which says so where it is that of an older result. */
export function studyUrgencyLook(study: StudyUrgency): UrgencyLook {
  const look = urgencyLook(study.urgency, study.state);
  if (!study.urgency_older) return look;
  if (study.urgency === null) return { ...look, tip: study.urgency_reason ?? NO_AI_URGENCY };
  return { ...look, word: `${look.word}, older result`, tip: "This urgency is of an older result. It stays until a person has read the study: AI may raise a study, never lower it." };
}

/** Why a study has its urgency, with the run that it is from. */
export function urgencyWords(study: StudyUrgency): string {
  const said = study.urgency_reason ?? (study.urgency === null ? (urgencyLook(null, study.state).tip ?? "No rule has judged this study.") : "No reason was recorded.");
  return study.urgency_older && study.urgency !== null ? `Of an older result, not of the study's last run: ${said}` : said;
}

/** A study without an urgency is not a routine study: nothing is known of it, yet or at all. */
export function urgencyLook(urgency: string | null, state: string): UrgencyLook {
  const known = urgency === null ? undefined : LOOKS[urgency];
  if (known !== undefined) return known;
  return ENDED.has(state) ? { icon: "", word: "no AI urgency", tone: "unknown", tip: NO_AI_URGENCY } : { icon: "", word: "pending", tone: "none", tip: PENDING };
}
