// Imported first by every script: one clear line instead of a syntax error on an old Node. npm puts the pinned Node's
// bin folder first on PATH, so seeing this means it could not be installed for this platform.
const NODE_MAJOR_MIN = 24

if (Number(process.versions.node.split('.')[0]) < NODE_MAJOR_MIN) {
  console.error(
    `millisky needs Node ${NODE_MAJOR_MIN} or newer and this is ${process.versions.node}: run npm ci (it installs the pinned one where there is a build for the platform) and start this through npm, or install Node ${NODE_MAJOR_MIN}+.`,
  )
  process.exit(1)
}
