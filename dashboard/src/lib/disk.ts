import type { StatusView } from "../api/types";
import { bytes } from "./format";

export interface DiskWords {
  refuses: boolean;
  what: string;
  todo: string;
}

/** What the room on the data folder's disk means for who sends, and what to do; null where there is enough. */
export function diskWords(disk: StatusView["disk"]): DiskWords | null {
  if (disk === null || (disk.level !== "warn" && disk.level !== "refuse")) return null;
  const used = `${Math.round(disk.used_percent)} % used, ${bytes(disk.free_bytes)} free`;
  const todo = "Free room on the disk of the data folder, or give it a larger one";
  if (disk.level === "refuse") {
    return { refuses: true, what: "DISK FULL: NO IMAGE IS TAKEN IN", todo: `${used}. What was received is safe; senders are told to try again. ${todo}: images are taken in again by themselves, nothing has to be restarted.` };
  }
  const least = disk.min_free_bytes > 0 ? `, or below ${bytes(disk.min_free_bytes)} free` : "";
  return { refuses: false, what: "DISK NEARLY FULL", todo: `${used}. Images are refused from ${disk.refuse_percent} % on${least}. ${todo}.` };
}
