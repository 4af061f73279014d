/** The API token of this tab: in memory, and in sessionStorage so that a reload keeps it. Gone with the tab. */

const KEY = "heimdallr.token";
let current: string | null = null;

function stored(): string | null {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null; // storage is switched off: memory alone
  }
}

export function token(): string | null {
  current ??= stored();
  return current;
}

export function setToken(value: string | null): void {
  current = value;
  try {
    if (value === null) sessionStorage.removeItem(KEY);
    else sessionStorage.setItem(KEY, value);
  } catch {
    // memory alone
  }
}

export function authorization(): Record<string, string> {
  const value = token();
  return value === null ? {} : { Authorization: `Bearer ${value}` };
}
