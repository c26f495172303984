// Plain JavaScript on purpose: it must be readable by any Node, so that an old one is told so instead of failing on
// syntax. Everything else is TypeScript that Node strips itself.
// The whole module: an older Node has no such member, and a named import of it would be a syntax error.
import module from 'node:module'

const NODE_MAJOR_MIN = 24

if (Number(process.versions.node.split('.')[0]) < NODE_MAJOR_MIN) {
  process.stderr.write(
    `millisky needs Node ${NODE_MAJOR_MIN} or newer and this is ${process.versions.node}: run npm ci, which installs the pinned one where there is a build for the platform, or install Node ${NODE_MAJOR_MIN}+.\n`,
  )
  process.exit(1)
}
module.enableCompileCache()
const { main } = await import('./main.ts')
await main(process.argv)
