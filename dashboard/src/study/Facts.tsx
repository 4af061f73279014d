import { useState } from "react";
import { getBlob } from "../api/client";
import type { ArtifactView, HistoryView, StageView, StudyDetail } from "../api/types";
import { bytes, clockTime, seconds } from "../lib/format";
import { attemptWords, noneWords } from "../lib/states";
import { Why } from "../ui";

export function Stages({ stages, job, state }: { stages: StageView[]; job: StudyDetail["job"]; state: string }) {
  const longest = Math.max(...stages.map((stage) => stage.seconds), 0.001);
  const total = stages.reduce((sum, stage) => sum + stage.seconds, 0);
  const attempts = job === null ? null : attemptWords(job, state);
  // A study that failed says why above.
  const told = attempts !== null && job?.error_code != null && state !== "failed";
  return (
    <section>
      <h2>Timing</h2>
      {stages.length === 0 ? <p className="mute">{noneWords("finished step", state)}</p> : (
        <table>
          <tbody>
            {stages.map((stage, index) => (
              <tr key={index}>
                <td>{stage.step}</td>
                <td className="num">{seconds(stage.seconds)}</td>
                <td style={{ width: "50%" }}><div className="bar" style={{ width: `${(100 * stage.seconds) / longest}%` }} /></td>
              </tr>
            ))}
            <tr><td>all steps</td><td className="num">{seconds(total)}</td><td /></tr>
          </tbody>
        </table>
      )}
      {attempts !== null && <p className="mute">{attempts}{told && " What went wrong last:"}</p>}
      {told && job?.error_code != null && <Why code={job.error_code} />}
    </section>
  );
}

/** Fetches with our rights and hands the bytes to the browser under the artifact's own name. */
async function download(artifact: ArtifactView): Promise<void> {
  const url = URL.createObjectURL(await getBlob(artifact.url));
  const link = document.createElement("a");
  link.href = url;
  link.download = artifact.name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

export function Files({ artifacts, state }: { artifacts: ArtifactView[]; state: string }) {
  const [failed, setFailed] = useState<string | null>(null);
  return (
    <section>
      <h2>Files</h2>
      {artifacts.length === 0 ? <p className="mute">{noneWords("file", state)}</p> : (
        <table>
          <tbody>
            {artifacts.map((artifact) => (
              <tr key={artifact.name}>
                <td><a href={artifact.url} onClick={(event) => { event.preventDefault(); setFailed(null); download(artifact).catch(() => setFailed(artifact.name)); }}>{artifact.name}</a></td>
                <td className="hint">{artifact.kind.replaceAll("_", " ")}</td>
                <td className="num">{bytes(artifact.size)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
      {failed !== null && <p role="alert" className="bad">{failed} could not be loaded.</p>}
    </section>
  );
}

export function History({ history }: { history: HistoryView[] }) {
  const now = new Date();
  return (
    <section>
      <details>
        <summary>History ({history.length})</summary>
        <table>
          <tbody>
            {history.map((item) => (
              <tr key={item.id}>
                <td className="mono">{clockTime(item.at, now)}</td>
                <td>{item.kind}</td>
                <td>{[item.old, item.new].filter((part) => part !== null).join(" → ")}{item.reason !== null && <div className="hint">{item.reason}</div>}</td>
                <td className="hint">{item.actor}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </details>
    </section>
  );
}
