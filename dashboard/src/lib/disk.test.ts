import { describe, expect, it } from "vitest";
import { diskWords } from "./disk";

const disk = { level: "well", used_percent: 93.4, free_bytes: 2 ** 34, warn_percent: 85, refuse_percent: 92, min_free_bytes: 2 ** 30 };

describe("the disk", () => {
  it("is not spoken of while there is room, or nothing is known", () => {
    expect(diskWords(disk)).toBeNull();
    expect(diskWords(null)).toBeNull();
  });
  it("says before it is full what will happen and what to do", () => {
    const said = diskWords({ ...disk, level: "warn", used_percent: 86.2 });
    expect(said).toMatchObject({ refuses: false, what: "DISK NEARLY FULL" });
    expect(said?.todo).toMatch(/^86 % used, .* free\. Images are refused from 92 % on, .*Free room on the disk/);
  });
  it("says that nothing is taken in, and that this ends by itself", () => {
    const said = diskWords({ ...disk, level: "refuse" });
    expect(said?.refuses).toBe(true);
    expect(said?.todo).toMatch(/What was received is safe.*taken in again by themselves/);
  });
});
