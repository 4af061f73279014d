import { useState } from "react";
import type { ArtifactView } from "../api/types";
import { useKeys } from "../keys";
import { words } from "../lib/format";
import { keyPictures, shownOf } from "../lib/images";
import { noneWords } from "../lib/states";
import { ArtifactImage } from "../ui";

export function Gallery({ artifacts, overlay, state }: { artifacts: ArtifactView[]; overlay: boolean; state: string }) {
  const pictures = keyPictures(artifacts);
  const [chosen, setChosen] = useState<string | null>(null);
  const index = Math.max(0, pictures.findIndex((picture) => picture.key === chosen));
  const step = (by: number) => setChosen(pictures[(index + by + pictures.length) % pictures.length]?.key ?? null);
  useKeys({ ArrowRight: () => step(1), ArrowLeft: () => step(-1) });
  const picture = pictures[index];
  const shown = picture === undefined ? null : shownOf(picture, overlay);
  if (picture === undefined || shown === null) {
    return <div className="stage"><p className="waiting">{noneWords("key images", state)}</p></div>;
  }
  return (
    <>
      <div className="stage" id="stage" role="tabpanel" aria-labelledby="tab-images">
        <ArtifactImage artifact={shown} alt={`${picture.title}, ${shown.kind === "overlay" ? "with" : "without"} overlay`} />
      </div>
      {/* Beside the picture: its corners carry orientation letters. */}
      {shown.kind === "overlay" && <Legend structures={shown.meta["structures"]} />}
      <div className="thumbs" role="group" aria-label="Key images">
        {pictures.map((item) => {
          const artifact = shownOf(item, overlay);
          return (
            <button key={item.key} aria-pressed={item.key === picture.key} onClick={() => setChosen(item.key)}>
              {artifact !== null && <ArtifactImage artifact={artifact} alt="" />}
              {item.title}
            </button>
          );
        })}
      </div>
    </>
  );
}

function Legend({ structures }: { structures: unknown }) {
  if (typeof structures !== "object" || structures === null) return null;
  const entries = Object.entries(structures).filter((entry): entry is [string, string] => typeof entry[1] === "string" && /^#[0-9a-f]{6}$/.test(entry[1]));
  if (entries.length === 0) return null;
  return (
    <div className="legend row" role="group" aria-label="Structures">
      {entries.map(([name, colour]) => <div key={name}><span className="swatch" style={{ background: colour }} />{words(name)}</div>)}
    </div>
  );
}
