import { useState } from "react";
import { unitOf, valueWithUnit, words } from "../lib/format";
import { reasonOf } from "../lib/reasons";
import { notRunWords, statusTone, statusWord, type LeftOutTask, type MeasurementRow } from "../lib/results";
import { useSentences, Why } from "../ui";

/** Every measurement with its value or the reason why it has none; never an empty cell that could be read as zero. */
export function Measurements({ rows }: { rows: MeasurementRow[] }) {
  if (rows.length === 0) return <p className="mute">This result holds no measurement.</p>;
  const measured = rows.filter((row) => row.value !== null);
  const rest = byReason(rows.filter((row) => row.value === null));
  return (
    <div className="wrap">
      <table className="measure">
        <thead><tr><th scope="col">Measurement</th><th scope="col" className="num">Value</th><th scope="col">Status</th></tr></thead>
        {measured.map((row) => <Measurement key={row.id} row={row} />)}
        {rest.flatMap((group) => group.map((row, at) => <Measurement key={row.id} row={row} repeated={at > 0} />))}
      </table>
    </div>
  );
}

/** Rows of one status and the same reasons together, in the order of the first of each. */
function byReason(rows: MeasurementRow[]): MeasurementRow[][] {
  const groups = new Map<string, MeasurementRow[]>();
  for (const row of rows) {
    const key = [row.status, notRunWords(row) ?? "", ...row.reasons].join("\n");
    groups.set(key, [...(groups.get(key) ?? []), row]);
  }
  return [...groups.values()];
}

/** Segmentations that were not run, and why: what they would have shown is missing above. */
export function LeftOut({ tasks }: { tasks: LeftOutTask[] }) {
  if (tasks.length === 0) return null;
  return (
    <section data-testid="left-out">
      <h2>Not run</h2>
      <dl className="left-out">
        {tasks.map(({ task, code, detail }) => <div key={task}><dt>{words(task)}</dt><dd><Why code={code} detail={detail} /></dd></div>)}
      </dl>
    </section>
  );
}

/** `repeated`: the row above says the same reasons in full. */
function Measurement({ row, repeated = false }: { row: MeasurementRow; repeated?: boolean }) {
  const sentences = useSentences();
  const [open, setOpen] = useState(false);
  const regions = row.evidence.find(([name]) => name === "regions")?.[1];
  return (
    <tbody data-measurement={row.id}>
      <tr>
        <td>
          <button type="button" className="disclose" aria-expanded={open} title="provenance" onClick={() => setOpen(!open)}>{words(row.id)}</button>
          {regions !== undefined && <div className="hint">{regions.split(",").join(", ")}</div>}
        </td>
        <td className="num">{row.value === null ? <span className="hint">—</span> : <span className="value" title={String(row.value)}>{valueWithUnit(row.value, row.unit)}</span>}</td>
        <td>
          <span className={`pill small ${statusTone(row.status)}`} title={reasonOf(row.status, sentences).sentence}>{statusWord(row.status)}</span>
          {repeated ? <Repeated codes={row.reasons} /> : row.reasons.map((code, at) => <Why key={code} code={code} detail={at === 0 ? notRunWords(row) : null} />)}
        </td>
      </tr>
      {open && (
        <tr className="more">
          <td colSpan={3}>
            <dl>
              {row.value !== null && <Pair name="unrounded" value={`${row.value} ${unitOf(row.unit)}`.trim()} />}
              {row.nVoxels !== null && <Pair name="voxels" value={String(row.nVoxels)} />}
              {[...row.provenance, ...row.evidence].map(([name, value]) => <Pair key={name} name={name} value={value} />)}
            </dl>
          </td>
        </tr>
      )}
    </tbody>
  );
}

function Repeated({ codes }: { codes: string[] }) {
  const sentences = useSentences();
  return <span className="why" title={codes.map((code) => reasonOf(code, sentences).sentence).join(" ")}> as above {codes.map((code) => <code key={code}>{code} </code>)}</span>;
}

function Pair({ name, value }: { name: string; value: string }) {
  return <><dt>{name.replaceAll("_", " ")}</dt><dd>{value}</dd></>;
}
