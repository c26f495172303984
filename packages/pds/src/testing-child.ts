/**
 * A PDS in a process of its own, to be killed: `node testing-child.ts FOLDER USER…`. Tells its URL and its users' tokens.
 * A user whose name ends in `-arriving` has an account that is deactivated. A DID that it is sent it activates, and answers with why not, or null.
 */
import { createHash } from 'node:crypto'
import { asDid, asHandle } from '@millisky/core/syntax'
import { readSettings } from '@millisky/server/config'
import { silentLog } from '@millisky/server/trace'
import { settings as settingsTable } from './config.ts'
import { createPds } from './main.ts'
import { SCOPES, Tokens } from './tokens.ts'

const JWT_SECRET = 'a secret of tests'
const [, , folder = '', ...names] = process.argv
const settings = readSettings(settingsTable, [], {
  env: {
    PDS_PORT: '0',
    PDS_BIND: '127.0.0.1',
    PDS_DATA_DIRECTORY: folder,
    PDS_JWT_SECRET: JWT_SECRET,
    PDS_RATE_LIMITS_ENABLED: 'false',
  },
})
const pds = await createPds(settings, { log: silentLog })
await pds.listen()
const tokens = new Tokens(JWT_SECRET, pds.names.did, Date.now)
const users = await Promise.all(
  names.map(async name => {
    const did = asDid(`did:web:${name}.example`)
    if (!(await pds.store.accounts.byDid(did))) {
      const key = { curve: 'k256' as const, secret: new Uint8Array(createHash('sha256').update(name).digest()) }
      const deactivated = name.endsWith('-arriving')
      await pds.lifecycle.open({ did, handle: asHandle(`${name}.test`), email: null, password: null, key, deactivated })
    }
    return { did, token: await tokens.access(did, SCOPES.access) }
  }),
)
process.on('disconnect', () => process.exit())
process.on('message', async did => {
  const why = await pds.lifecycle.activate(asDid(String(did))).then(
    () => null,
    error => String(error),
  )
  process.send!(why)
})
process.send!({ url: pds.url, users })
