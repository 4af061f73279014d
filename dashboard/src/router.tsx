import { useSyncExternalStore, type MouseEvent, type ReactNode } from "react";

export type Route = { page: "worklist" } | { page: "study"; uid: string } | { page: "unknown" };

const UID = /^[0-9]+(\.[0-9]+)*$/;

/** What a path shows. A study is named by its UID; anything else in its place is unknown. */
export function routeOf(path: string): Route {
  if (path === "/") return { page: "worklist" };
  const uid = /^\/studies\/([^/]+)\/?$/.exec(path)?.[1];
  return uid !== undefined && uid.length <= 64 && UID.test(uid) ? { page: "study", uid } : { page: "unknown" };
}

const listeners = new Set<() => void>();
const subscribe = (listener: () => void) => {
  listeners.add(listener);
  window.addEventListener("popstate", listener);
  return () => {
    listeners.delete(listener);
    window.removeEventListener("popstate", listener);
  };
};

export function useRoute(): Route {
  return routeOf(useSyncExternalStore(subscribe, () => window.location.pathname));
}

export function navigate(path: string): void {
  window.history.pushState(null, "", path);
  for (const listener of [...listeners]) listener();
}

interface LinkProps {
  to: string;
  children: ReactNode;
  className?: string;
  current?: boolean;
}

export function Link({ to, children, className, current }: LinkProps) {
  const onClick = (event: MouseEvent) => {
    if (event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    navigate(to);
  };
  return (
    <a href={to} onClick={onClick} className={className} aria-current={current === true ? "page" : undefined}>
      {children}
    </a>
  );
}
