/**
 * Installs the reference PDS, a peer for tests and benchmarks and no dependency: `node scripts/reference-pds.mjs [FOLDER]`.
 * The folder is the argument, or MILLISKY_REFERENCE_PDS, or `.cache/reference-pds`; tests find it by that variable. One of
 * its dependencies is compiled, which takes a C++ compiler, Python and the headers of Node.
 */
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'

const VERSION = '0.5.35'
const TIMEOUT_MS = 15 * 60_000

const folder = resolve(process.argv[2] ?? process.env.MILLISKY_REFERENCE_PDS ?? '.cache/reference-pds')

function installed() {
  try {
    const { version } = JSON.parse(readFileSync(join(folder, 'node_modules/@atproto/pds/package.json'), 'utf8'))
    return version === VERSION
  } catch {
    return false
  }
}

/** Whether it runs here, which a compiled dependency does not on another Node than it was compiled for. */
function loads() {
  const code = "await import('@atproto/pds')"
  const run = spawnSync(process.execPath, ['--input-type=module', '-e', code], { cwd: folder, encoding: 'utf8' })
  return run.status === 0 ? null : run.stderr.trim().split('\n').slice(-8).join('\n')
}

function install() {
  mkdirSync(folder, { recursive: true })
  const manifest = { name: 'reference-pds', private: true, dependencies: { '@atproto/pds': VERSION } }
  writeFileSync(join(folder, 'package.json'), `${JSON.stringify(manifest, null, 2)}\n`)
  const bin = dirname(process.execPath)
  const headers = dirname(bin)
  const hasHeaders = existsSync(join(headers, 'include/node/node.h'))
  const env = {
    ...process.env,
    // What is compiled is compiled for this very Node.
    PATH: `${bin}:${process.env.PATH}`,
    ...(hasHeaders ? { npm_config_nodedir: headers } : {}),
  }
  const args = ['install', '--no-audit', '--no-fund', '--ignore-scripts=false']
  const run = spawnSync('npm', args, { cwd: folder, env, stdio: 'inherit', timeout: TIMEOUT_MS })
  return run.status === 0
}

if (!installed() && !install()) {
  process.stderr.write(`The reference PDS ${VERSION} could not be installed in ${folder}: see npm's words above.\n`)
  process.exit(1)
}
const problem = loads()
if (problem !== null) {
  process.stderr.write(
    `The reference PDS ${VERSION} in ${folder} does not run on Node ${process.version}:\n${problem}\n`,
  )
  process.exit(1)
}
process.stdout.write(`The reference PDS ${VERSION} is in ${folder}: set MILLISKY_REFERENCE_PDS to that.\n`)
