import { valueWithUnit, words } from "../lib/format";
import { statusTone, statusWord, type MeasurementRow } from "../lib/results";

/** Every measurement with its value or the reason why it has none; never an empty cell that could be read as zero. */
export function Measurements({ rows }: { rows: MeasurementRow[] }) {
  if (rows.length === 0) return <p className="mute">This result holds no measurement.</p>;
  const measured = rows.filter((row) => row.value !== null);
  const rest = rows.filter((row) => row.value === null);
  return (
    <div className="wrap">
      <table className="measure">
        <thead><tr><th scope="col">Measurement</th><th scope="col" className="num">Value</th><th scope="col">Status</th></tr></thead>
        {[...measured, ...rest].map((row) => <Measurement key={row.id} row={row} />)}
      </table>
    </div>
  );
}

function Measurement({ row }: { row: MeasurementRow }) {
  return (
    <tbody data-measurement={row.id}>
      <tr className="lead">
        <td>{words(row.id)}</td>
        <td className="num">{row.value === null ? <span className="hint">—</span> : <span className="value" title={String(row.value)}>{valueWithUnit(row.value, row.unit)}</span>}</td>
        <td><span className={`pill small ${statusTone(row.status)}`}>{statusWord(row.status)}</span>{row.reasons.length > 0 && <div className="hint mono">{row.reasons.join(", ")}</div>}</td>
      </tr>
      <tr className="more">
        <td colSpan={3}>
          <details>
            <summary>provenance</summary>
            <dl>
              {row.value !== null && <><dt>unrounded</dt><dd>{row.value} {row.unit}</dd></>}
              {row.nVoxels !== null && <><dt>voxels</dt><dd>{row.nVoxels}</dd></>}
              {[...row.provenance, ...row.evidence].map(([name, value]) => <Pair key={name} name={name} value={value} />)}
            </dl>
          </details>
        </td>
      </tr>
    </tbody>
  );
}

function Pair({ name, value }: { name: string; value: string }) {
  return <><dt>{name.replaceAll("_", " ")}</dt><dd>{value}</dd></>;
}
