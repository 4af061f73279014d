import { words } from "./format";

/** What a reason code says. A flag of an image carries a number after its code: `tilt:18.5`. */
export function reasonOf(code: string, sentences: Record<string, string>): { sentence: string; known: boolean } {
  const name = code.split(":", 1)[0] ?? code;
  const sentence = Object.hasOwn(sentences, name) ? sentences[name] : undefined;
  return sentence === undefined ? { sentence: `${words(name)}.`, known: false } : { sentence, known: true };
}

const plain = (text: string): string => text.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, " ").trim();

/** True where the detail adds nothing to the sentence. */
export const saysTheSame = (sentence: string, detail: string): boolean => ` ${plain(sentence)} `.includes(` ${plain(detail)} `);
