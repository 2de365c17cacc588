// Every feature on Deno: deno run deno.mjs SPEC, with the spec as JSON.
import { interop } from "./page.mjs";

const report = await interop(JSON.parse(Deno.args[0]));
report.get = "no such call";
console.log(JSON.stringify(report));
// Whatever a session of its left open ends here.
Deno.exit(0);
