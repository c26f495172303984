/** What a PDS under test finds around it: a did:plc directory over real sockets, which can be made to fail. */
import { randomBytes } from 'node:crypto'
import { settings as plcSettings } from '@millisky/plc/config'
import { createPlc, type Plc } from '@millisky/plc/main'
import { readSettings } from '@millisky/server/config'
import { type Answer, type FetchBytes, Fetcher, type FetchOptions } from '@millisky/server/fetch'
import type { ResolveTxt } from '@millisky/server/identity'
import { silentLog } from '@millisky/server/trace'
import { type Answer as Reply, startTestPds, type TestPds } from './testing-pds.ts'

interface Cleanup {
  after(fn: () => Promise<void>): void
}

/** Answers in place of the world, or undefined to let the request through. */
export type Interference = (url: URL, options: FetchOptions) => Promise<Made | undefined> | Made | undefined
type Made = Pick<Answer, 'status'> & Partial<Answer>

export interface TestNetwork {
  plc: Plc
  /** Requests that were made, such as `POST /did:plc:…`. */
  asked: string[]
  interfere: Interference | null
  fetch: FetchBytes
}

export async function startNetwork(t: Cleanup, now?: () => number): Promise<TestNetwork> {
  const env = { PLC_PORT: '0', PLC_DB: ':memory:', PLC_DEV_MODE: 'true' }
  const plc = await createPlc(readSettings(plcSettings, [], { env }), { log: silentLog, ...(now ? { now } : {}) })
  const fetcher = new Fetcher({ userAgent: 'test', allowPrivate: true })
  await plc.listen()
  t.after(async () => {
    await fetcher.close()
    await plc.close()
  })
  const network: TestNetwork = {
    plc,
    asked: [],
    interfere: null,
    async fetch(url, options = {}) {
      const target = new URL(url)
      network.asked.push(`${options.method ?? 'GET'} ${target.pathname}`)
      const answer = await network.interfere?.(target, options)
      if (answer) return { headers: new Headers(), url: target.href, bytes: new Uint8Array(), ...answer }
      return fetcher.fetch(url, options)
    },
  }
  return network
}

export interface NetworkedPds extends TestPds {
  network: TestNetwork
}

/** A PDS that makes identities in a directory of its own. */
export async function startNetworkedPds(
  t: Cleanup,
  env: Record<string, string> = {},
  { now, network, resolveTxt }: { now?: () => number; network?: TestNetwork; resolveTxt?: ResolveTxt } = {},
): Promise<NetworkedPds> {
  const around = network ?? (await startNetwork(t, now))
  const settings = {
    PDS_DID_PLC_URL: around.plc.url,
    PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX: randomBytes(32).toString('hex'),
    ...env,
  }
  const pds = await startTestPds(t, settings, {
    fetch: around.fetch,
    ...(now ? { now } : {}),
    ...(resolveTxt ? { resolveTxt } : {}),
  })
  return Object.assign(pds, { network: around })
}

/** A person with an account made over the wire. */
export interface Person {
  did: string
  handle: string
  email: string
  password: string
  accessJwt: string
  refreshJwt: string
  auth: { authorization: string }
}

/** Signs somebody up at `<name>.test`. */
export async function signUp(pds: TestPds, name: string, extra: Record<string, unknown> = {}): Promise<Person> {
  const wanted = { handle: `${name}.test`, email: `${name}@example.com`, password: `${name}-password` }
  const reply = await pds.post('com.atproto.server.createAccount', { ...wanted, ...extra })
  if (reply.status !== 200) throw new Error(`createAccount: ${JSON.stringify(reply.json)}`)
  const { did, accessJwt, refreshJwt } = reply.json
  return { ...wanted, did, accessJwt, refreshJwt, auth: { authorization: `Bearer ${accessJwt}` } }
}

/** What a failure looks like to a client. */
export const failure = ({ status, json }: Reply): [number, string, string] => [status, json?.error, json?.message]
