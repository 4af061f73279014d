import { copyFileSync, mkdirSync, readFileSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { gzipSync } from "node:zlib";
import react from "@vitejs/plugin-react";
import { defineConfig, type Plugin } from "vite";

const OUT = resolve(import.meta.dirname, "../heimdallr_ray/dashboard/static");
const MODULES = resolve(import.meta.dirname, "node_modules");
const SWAGGER = ["swagger-ui-bundle.js", "swagger-ui.css"];
const SHIPPED = ["@niivue/niivue", "@tanstack/query-core", "@tanstack/react-query", "react", "react-dom", "scheduler", "swagger-ui-dist"];

/** The API's documentation page works without a network: its assets come from the npm package, at build time. */
function swaggerUi(): Plugin {
  return {
    name: "swagger-ui",
    closeBundle() {
      mkdirSync(join(OUT, "docs"), { recursive: true });
      for (const name of SWAGGER) copyFileSync(join(MODULES, "swagger-ui-dist", name), join(OUT, "docs", name));
    },
  };
}

/** The licence texts of what is shipped, as their licences ask. */
function notices(): Plugin {
  return {
    name: "notices",
    closeBundle() {
      const texts = SHIPPED.map((name) => {
        const folder = join(MODULES, name);
        const meta = JSON.parse(readFileSync(join(folder, "package.json"), "utf8")) as { version: string; license: string };
        const files = readdirSync(folder).filter((file) => /^(licen[cs]e|notice)/i.test(file));
        const body = files.map((file) => readFileSync(join(folder, file), "utf8").trim()).join("\n\n");
        return `${name} ${meta.version} (${meta.license})\n\n${body}`;
      });
      writeFileSync(join(OUT, "NOTICES.txt"), texts.join(`\n\n${"-".repeat(80)}\n\n`) + "\n");
    },
  };
}

/** Compressed once here instead of on each request. */
function compressed(): Plugin {
  return {
    name: "compressed",
    closeBundle() {
      for (const entry of readdirSync(OUT, { recursive: true, encoding: "utf8" })) {
        const path = join(OUT, entry);
        if (/\.(js|css)$/.test(entry) && statSync(path).size > 10_000) {
          mkdirSync(dirname(path), { recursive: true });
          writeFileSync(`${path}.gz`, gzipSync(readFileSync(path), { level: 9 }));
        }
      }
    },
  };
}

export default defineConfig({
  plugins: [react(), swaggerUi(), notices(), compressed()],
  build: {
    outDir: OUT,
    emptyOutDir: true,
    assetsInlineLimit: 0,
    chunkSizeWarningLimit: 4000,
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
  },
  server: { proxy: { "/api": "http://127.0.0.1:8001", "/upload": "http://127.0.0.1:8001" } },
  // The order of closeBundle hooks is the order of plugins: compress what the others have written.
});
