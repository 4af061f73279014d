import { useId, useState, type FormEvent } from "react";

/** A button that asks why, and who, before anything happens: both stay in the history. `send` settles once it is done. */
export function Ask({ label, testId, send, pending, error, failed }: { label: string; testId: string; send: (reason: string, by: string) => Promise<unknown>; pending: boolean; error: Error | null; failed: string }) {
  const [asking, setAsking] = useState(false);
  const [reason, setReason] = useState("");
  const [by, setBy] = useState("");
  const ids = useId();
  const whole = reason.trim() !== "" && by.trim() !== "";
  if (!asking) return <button type="button" data-testid={testId} onClick={() => setAsking(true)}>{label}</button>;
  const submit = (event: FormEvent) => {
    event.preventDefault();
    // What went wrong is shown by `error`; the form stays open then.
    if (whole) send(reason.trim(), by.trim()).then(() => setAsking(false), () => undefined);
  };
  return (
    <form className="ask" onSubmit={submit}>
      <label htmlFor={`${ids}reason`}>Why</label>
      <input id={`${ids}reason`} type="text" required maxLength={500} autoFocus value={reason} onChange={(event) => setReason(event.target.value)} />
      <label htmlFor={`${ids}by`}>Your name</label>
      <input id={`${ids}by`} type="text" required maxLength={64} value={by} onChange={(event) => setBy(event.target.value)} />
      <button type="submit" className="primary" disabled={pending || !whole}>{label}</button>
      <button type="button" onClick={() => setAsking(false)}>Cancel</button>
      {error !== null && <p role="alert" className="bad">{failed}: {error.message}</p>}
    </form>
  );
}
