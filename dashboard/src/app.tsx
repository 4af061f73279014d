import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useState, type FormEvent } from "react";
import { ApiError, getStatus } from "./api/client";
import { LiveBadge, LiveProvider } from "./api/live";
import { setToken } from "./api/token";
import type { StatusView } from "./api/types";
import { Link, useRoute } from "./router";
import { diskWords } from "./lib/disk";
import { DEMO_INSTALLATION } from "./ui";
import { StudyPage } from "./study/StudyPage";
import { Worklist } from "./worklist/Worklist";

/** The frame around every page: who we are, how fresh it is, and what it is not. */
export function App() {
  const status = useQuery({ queryKey: ["status"], queryFn: ({ signal }) => getStatus(signal), refetchInterval: 30_000 });
  const route = useRoute();
  if (status.error instanceof ApiError && status.error.status === 401) return <SignIn />;
  return (
    <LiveProvider>
      <a className="skip" href="#content">Skip to content</a>
      <header className="top">
        <Link to="/" className="brand"><img src="/favicon.svg" alt="" />heimdallr</Link>
        <nav aria-label="Pages">
          <Link to="/" current={route.page === "worklist"}>Worklist</Link>
          <a href="/docs">API</a>
        </nav>
        <span className="grow" />
        {status.data !== undefined && (
          <span className="hint" title="jobs that wait or run">
            queue {status.data.queue_depth}
            {(status.data.studies["failed"] ?? 0) > 0 && <> · <span className="bad">{status.data.studies["failed"]} failed</span></>}
          </span>
        )}
        <LiveBadge />
      </header>
      <div className="strip">AI pre-read. The order is a suggestion; every study stays in the list.</div>
      {status.data?.synthetic === true && route.page !== "study" && (
        <div className="demo" role="note">DEMO WEIGHTS <span>{DEMO_INSTALLATION}</span></div>
      )}
      {route.page === "worklist" && <DiskBanner disk={status.data?.disk ?? null} />}
      {route.page === "worklist" && <Worklist />}
      {route.page === "study" && <StudyPage uid={route.uid} key={route.uid} />}
      {route.page === "unknown" && <main id="content" className="empty"><h1>There is no such page</h1><p><Link to="/">Go to the worklist</Link></p></main>}
      <footer className="foot">
        <strong>Decision support, not for diagnosis</strong>
        <span className="grow" />
        {status.data !== undefined && <span>heimdallr_ray {status.data.version} · profile {status.data.profile}</span>}
      </footer>
    </LiveProvider>
  );
}

/** Gone by itself once there is room: the status is asked every 30 s. */
function DiskBanner({ disk }: { disk: StatusView["disk"] }) {
  const said = diskWords(disk);
  if (said === null) return null;
  return <div className={said.refuses ? "demo full" : "demo"} role="alert" data-testid="disk">{said.what} <span>{said.todo}</span></div>;
}

function SignIn() {
  const client = useQueryClient();
  const [value, setValue] = useState("");
  const onSubmit = (event: FormEvent) => {
    event.preventDefault();
    setToken(value.trim() === "" ? null : value.trim());
    void client.resetQueries();
  };
  return (
    <main className="signin">
      <h1>heimdallr</h1>
      <p className="mute">This server asks for its API token. It is kept for this tab only.</p>
      <form onSubmit={onSubmit} style={{ display: "grid", gap: 12 }}>
        <label htmlFor="token">API token</label>
        <input id="token" type="password" autoComplete="off" value={value} onChange={(event) => setValue(event.target.value)} autoFocus />
        <button className="primary" type="submit">Continue</button>
      </form>
    </main>
  );
}
