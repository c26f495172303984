// npm run bench: every benchmark, or those named (`npm run bench -- codec mst`). Prints tables and writes the rows as JSON
// to bench/results.json, or where --json says.
import './guard.mjs'
import { readdirSync, writeFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { machine, printTable } from '../bench/measure.ts'

const folder = new URL('../bench/', import.meta.url)
const all = readdirSync(folder)
  .filter(file => file.endsWith('.ts') && file !== 'measure.ts')
  .map(file => file.slice(0, -3))

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { json: { type: 'string', default: 'bench/results.json' }, help: { type: 'boolean', short: 'h' } },
})
if (values.help) {
  console.log(`Usage: npm run bench -- [--json FILE] [NAME …]\n\nNames: ${all.join(', ')}`)
  process.exit(0)
}
const unknown = positionals.filter(name => !all.includes(name))
if (unknown.length > 0) {
  console.error(`no such benchmark: ${unknown.join(', ')}; there are ${all.join(', ')}`)
  process.exit(2)
}

const results = []
console.log(machine())
for (const name of positionals.length > 0 ? positionals : all) {
  const { run } = await import(new URL(`${name}.ts`, folder).href)
  if (!run) continue
  console.log(`\n# ${name}`)
  await run((title, rows, unit) => {
    results.push({ benchmark: name, title, unit, rows })
    printTable(title, rows, unit)
  })
}
writeFileSync(
  values.json,
  `${JSON.stringify({ machine: machine(), date: new Date().toISOString(), results }, null, 2)}\n`,
)
console.log(`\nwritten to ${values.json}`)
