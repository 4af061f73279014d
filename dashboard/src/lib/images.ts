import type { ArtifactView } from "../api/types";
import { words } from "./format";

/** One key picture: without and, where there is one, with the overlay drawn on it. */
export interface KeyPicture {
  key: string;
  title: string;
  plain: ArtifactView | null;
  overlay: ArtifactView | null;
}

const FIRST = ["hemorrhage", "overview"];

const pairKey = (name: string): string => name.replace(/\.(png|jpe?g)$/i, "").replace(/[-_.](overlay|key_image)$/i, "");

function titleOf(artifact: ArtifactView): string | null {
  const { subject } = artifact.meta as Record<string, unknown>;
  return typeof subject === "string" && subject !== "" ? words(subject) : null;
}

/** What may not wait first, then the overview, then by name; one with and one without overlay that share a name become one entry. */
export function keyPictures(artifacts: ArtifactView[]): KeyPicture[] {
  const pictures = new Map<string, KeyPicture>();
  for (const artifact of artifacts) {
    if (artifact.kind !== "key_image" && artifact.kind !== "overlay") continue;
    const key = pairKey(artifact.name);
    const picture = pictures.get(key) ?? { key, title: titleOf(artifact) ?? words(key), plain: null, overlay: null };
    if (artifact.kind === "overlay") picture.overlay = artifact;
    else picture.plain = artifact;
    pictures.set(key, picture);
  }
  const rank = (picture: KeyPicture) => (FIRST.indexOf(picture.key) + FIRST.length + 1) % (FIRST.length + 1);
  return [...pictures.values()].sort((a, b) => rank(a) - rank(b) || a.key.localeCompare(b.key));
}

/** True where a picture can be shown both with and without its overlay. */
export const hasOverlay = (pictures: KeyPicture[]): boolean => pictures.some((picture) => picture.plain !== null && picture.overlay !== null);

/** What to show; a picture that exists in one form only is shown in that form. */
export function shownOf(picture: KeyPicture, overlay: boolean): ArtifactView | null {
  return overlay ? (picture.overlay ?? picture.plain) : (picture.plain ?? picture.overlay);
}
