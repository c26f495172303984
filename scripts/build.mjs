// npm run build: JavaScript for the published package and containers, in dist/. One file for each entry, workers among
// them, with shared parts in chunks; npm dependencies stay outside and are installed as usual.
import './guard.mjs'
import { chmodSync, copyFileSync, globSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { build } from 'esbuild'

const out = 'dist'
rmSync(out, { recursive: true, force: true })

// A worker is named by `new URL('./x.ts', import.meta.url)`; built, it lies beside the file that names it.
const workers = globSync('packages/*/src/**/*worker.ts')
const packages = ['core', 'server', 'plc', 'pds', 'relay', 'cli']
const manifests = packages.map(name => JSON.parse(readFileSync(`packages/${name}/package.json`, 'utf8')))
const external = new Set(manifests.flatMap(({ dependencies = {} }) => Object.keys(dependencies)))
for (const name of packages) external.delete(`@millisky/${name}`)

const result = await build({
  entryPoints: { main: 'packages/cli/src/main.ts', ...Object.fromEntries(workers.map(file => [nameOf(file), file])) },
  outdir: `${out}/lib`,
  bundle: true,
  splitting: true,
  format: 'esm',
  platform: 'node',
  target: 'node24',
  external: [...external],
  outExtension: { '.js': '.mjs' },
  sourcemap: true,
  legalComments: 'none',
  metafile: true,
  plugins: [{ name: 'workers', setup: pointAtBuiltWorkers }],
})

function nameOf(file) {
  return file.split('/').at(-1).replace(/\.ts$/, '')
}

function pointAtBuiltWorkers(context) {
  context.onLoad({ filter: /packages\/[^/]+\/src\/.*\.ts$/ }, ({ path }) => {
    const text = readFileSync(path, 'utf8')
    const contents = text
      .replace(
        /new URL\(\s*'\.[^']*?([\w-]*worker)\.ts',\s*import\.meta\.url\s*,?\s*\)/g,
        "new URL('./$1.mjs', import.meta.url)",
      )
      .replace("new URL('./entry.mjs', import.meta.url)", "new URL('../bin/millisky.mjs', import.meta.url)")
      .replace(/new URL\('\.\.\/package\.json', import\.meta\.url\)/g, "new URL('../package.json', import.meta.url)")
    return { contents, loader: 'ts' }
  })
}

const { version, description, license } = JSON.parse(readFileSync('package.json', 'utf8'))
const dependencies = Object.assign({}, ...manifests.map(manifest => manifest.dependencies ?? {}))
for (const name of packages) delete dependencies[`@millisky/${name}`]
const manifest = {
  name: 'millisky',
  version,
  description,
  license,
  type: 'module',
  bin: { millisky: 'bin/millisky' },
  engines: { node: '>=24' },
  dependencies: Object.fromEntries(Object.entries(dependencies).sort(([a], [b]) => (a < b ? -1 : 1))),
}
writeFileSync(`${out}/package.json`, `${JSON.stringify(manifest, null, 2)}\n`)
mkdirSync(`${out}/bin`)
const entry = readFileSync('packages/cli/src/entry.mjs', 'utf8').replace("'./main.ts'", "'../lib/main.mjs'")
writeFileSync(`${out}/bin/millisky.mjs`, `#!/usr/bin/env node\n${entry}`)
// The same launcher as in a checkout, for its settings of memory and for a pinned Node where one is installed.
const launcher = readFileSync('packages/cli/bin/millisky', 'utf8').replace('/../src/entry.mjs', '/millisky.mjs')
if (!launcher.includes('entry=$here/millisky.mjs')) throw new Error('the launcher names its entry in another way')
writeFileSync(`${out}/bin/millisky`, launcher)
for (const file of ['millisky', 'millisky.mjs']) chmodSync(`${out}/bin/${file}`, 0o755)
for (const file of ['README.md', 'LICENSE', 'CHANGELOG.md']) copyFileSync(file, `${out}/${file}`)

const bytes = Object.values(result.metafile.outputs).reduce((sum, { bytes }) => sum + bytes, 0)
console.log(`${out}/: ${Object.keys(result.metafile.outputs).length} files, ${Math.round(bytes / 1024)} KiB`)
