/** Urgency is told by icon, word and colour together, never by colour alone (WCAG 1.4.1). */

export interface UrgencyLook {
  icon: string;
  word: string;
  tone: string;
}

const LOOKS: Record<string, UrgencyLook> = {
  P0: { icon: "!!", word: "CRITICAL", tone: "crit" },
  P1: { icon: "▲", word: "URGENT", tone: "urg" },
  P2: { icon: "◆", word: "SOON", tone: "soon" },
  P3: { icon: "●", word: "ROUTINE", tone: "rout" },
};

/** A study without an urgency is not a routine study: nothing is known yet. */
export function urgencyLook(urgency: string | null): UrgencyLook {
  return (urgency !== null ? LOOKS[urgency] : undefined) ?? { icon: "", word: "not yet known", tone: "none" };
}
