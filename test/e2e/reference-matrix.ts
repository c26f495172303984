// Every method of the lexicons with every kind of caller and with inputs that lack something.
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { ADMIN, type Ask, NONE, type Side, type Someone } from './reference-side.ts'

const lexicons = join(import.meta.dirname, '../../lexicons')
const NAMESPACES = ['admin', 'identity', 'moderation', 'repo', 'server', 'sync', 'temp', 'lexicon']

interface Schema {
  type: string
  format?: string
  properties?: Record<string, Schema>
  required?: string[]
  items?: Schema
  maximum?: number
  refs?: string[]
}

export interface MethodShape {
  nsid: string
  type: 'query' | 'procedure'
  parameters: Schema | undefined
  input: { encoding: string; schema?: Schema } | undefined
}

/** The methods a server of accounts may have. */
export function methods(): MethodShape[] {
  const found: MethodShape[] = []
  for (const namespace of NAMESPACES) {
    for (const file of readdirSync(join(lexicons, 'com/atproto', namespace)).sort()) {
      const { main } = JSON.parse(readFileSync(join(lexicons, 'com/atproto', namespace, file), 'utf8')).defs
      if (main?.type !== 'query' && main?.type !== 'procedure') continue
      const nsid = `com.atproto.${namespace}.${file.slice(0, -'.json'.length)}`
      found.push({ nsid, type: main.type, parameters: main.parameters, input: main.input })
    }
  }
  return found
}

/** A value that fits. */
function fitting(schema: Schema, someone: Someone): unknown {
  switch (schema.format ?? schema.type) {
    case 'did':
    case 'at-identifier':
      return someone.did
    case 'handle':
      return someone.handle
    case 'cid':
      return 'bafyreidfayvfuwqa7qlnopdjiqrxzs6blmoeu4rujcjtnci5beludirz2a'
    case 'nsid':
      return 'com.example.note'
    case 'datetime':
      return '2026-08-20T12:00:00Z'
    case 'at-uri':
      return `at://${someone.did}/com.example.note/a`
    case 'record-key':
      return 'a'
    case 'integer':
      return 1
    case 'boolean':
      return true
    case 'array':
      return [fitting(schema.items!, someone)]
    case 'unknown':
      return { $type: 'com.example.note' }
    case 'object':
      return fittingAll(schema, someone)
    case 'ref':
    case 'union':
      return { $type: 'com.example.unheard' }
    default:
      return 'text'
  }
}

function fittingAll({ properties = {}, required = [] }: Schema, someone: Someone): Record<string, unknown> {
  return Object.fromEntries(required.map(name => [name, fitting(properties[name]!, someone)]))
}

/** What no server should do to its own state in passing. */
const CHANGES =
  /delete|deactivate|activate|update(?!Email)|reset|reserve|importRepo|applyWrites|createInvite|createApp|Invites$/

export interface Callers {
  alice: Someone
  tokens: Record<string, string | undefined>
}

/** Every method, by everybody, with and without what it needs. */
export async function askAll(side: Side, { alice, tokens }: Callers): Promise<void> {
  for (const method of methods()) {
    const { nsid, type, input } = method
    const short = nsid.slice('com.atproto.'.length)
    const isPost = type === 'procedure'
    const empty: Ask = isPost ? { verb: 'POST', body: input ? {} : NONE } : {}
    for (const [who, auth] of Object.entries(tokens)) {
      await side.say(`${short} by ${who}`, nsid, { ...empty, ...(auth === undefined ? {} : { auth }) })
    }
    await side.say(`${short} wrong verb`, nsid, isPost ? {} : { verb: 'POST', body: NONE })
    await side.say(`${short} put`, nsid, { verb: 'PUT', body: NONE })
    await side.say(`${short} options`, nsid, { verb: 'OPTIONS', headers: { origin: 'https://a.example' } })
    await side.say(`${short} proxied to itself`, nsid, {
      ...empty,
      auth: alice,
      headers: { 'atproto-proxy': `${side.server.appView.did}#bsky_appview` },
    })
    if (isPost) await askBodies(side, method, short, alice)
    await askFields(side, method, short, alice, tokens)
    if (short === 'server.deactivateAccount') {
      await side.ask('com.atproto.server.activateAccount', { verb: 'POST', auth: alice, body: NONE })
    }
  }
}

async function askBodies(side: Side, { nsid, input }: MethodShape, short: string, alice: Someone): Promise<void> {
  const admin = /\.(admin|temp)\.|createInvite/.test(nsid)
  const auth = admin ? ADMIN : alice
  const say = (what: string, ask: Ask) => side.say(`${short} body: ${what}`, nsid, { verb: 'POST', auth, ...ask })
  const json = { 'content-type': 'application/json' }
  if (!input) {
    if (!CHANGES.test(nsid)) await say('unwanted', { body: { a: 1 } })
    return
  }
  await say('none', { body: NONE })
  await say('none, declared', { body: NONE, headers: json })
  if (input.encoding !== 'application/json') return
  await say('of no type', { body: new TextEncoder().encode('{}') })
  await say('text', { body: '{}', headers: { 'content-type': 'text/plain' } })
  await say('of a nonsense type', { body: '{}', headers: { 'content-type': 'nonsense' } })
  await say('broken', { body: '{', headers: json })
  await say('an array', { body: '[]', headers: json })
  await say('a string', { body: '"a"', headers: json })
  await say('null', { body: 'null', headers: json })
  await say('compressed unheard-of', { body: '{}', headers: { ...json, 'content-encoding': 'zip' } })
  await say('huge', { body: JSON.stringify({ a: 'a'.repeat(1_100_000) }), headers: json })
}

async function askFields(side: Side, method: MethodShape, short: string, alice: Someone, tokens: Callers['tokens']) {
  const { nsid, type, parameters, input } = method
  const isPost = type === 'procedure'
  const schema = isPost ? input?.schema : parameters
  if (!schema?.properties || (isPost && input?.encoding !== 'application/json')) return
  const auth = /\.(admin|temp)\.|createInvite/.test(nsid) ? tokens.admin! : alice
  const all = fittingAll(schema, alice)
  const say = (what: string, fields: Record<string, unknown>) =>
    side.say(`${short} ${what}`, nsid, isPost ? { auth, body: fields } : { auth, params: fields })
  for (const name of schema.required ?? []) {
    const { [name]: _left, ...rest } = all
    await say(`without ${name}`, rest)
  }
  for (const [name, property] of Object.entries(schema.properties)) {
    const wrong = isPost ? (property.type === 'integer' ? 'x' : 5) : property.type === 'string' ? '' : 'x'
    await say(`with a wrong ${name}`, { ...all, [name]: wrong })
    if (property.format) await say(`with a malformed ${name}`, { ...all, [name]: 'not one!' })
    if (property.type === 'integer') {
      await say(`with ${name} too small`, { ...all, [name]: -1 })
      await say(`with ${name} too large`, { ...all, [name]: 1_000_000 })
      if (!isPost) await say(`with ${name} no whole number`, { ...all, [name]: '1.5' })
    }
  }
  if (!isPost) {
    await say('with an unknown parameter', { ...all, unheard: 'of' })
    if ((schema.required ?? []).length > 0) {
      const [name] = schema.required!
      await say(`with ${name} twice`, { ...all, [name!]: [all[name!], all[name!]].flat() })
    }
  } else if (!CHANGES.test(nsid)) {
    await say('with an unknown field', { ...all, unheard: 'of' })
  }
}
