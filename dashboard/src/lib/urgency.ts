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

const ENDED = new Set(["done", "failed", "not_applicable", "cancelled", "superseded"]);

/** A study without an urgency is not a routine study: nothing is known of it, yet or at all. */
export function urgencyLook(urgency: string | null, state: string): UrgencyLook {
  const known = urgency === null ? undefined : LOOKS[urgency];
  return known ?? { icon: "", word: ENDED.has(state) ? "unknown" : "pending", tone: "none" };
}
