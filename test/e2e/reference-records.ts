// What people keep in their repositories, step by step; each step under a name of its own.
import { ADMIN, NONE, type Side, type Someone } from './reference-side.ts'

const POST = 'app.bsky.feed.post'
const NOTE = 'com.example.note'
const PROFILE = 'app.bsky.actor.profile'
const OTHER_CID = 'bafyreidfayvfuwqa7qlnopdjiqrxzs6blmoeu4rujcjtnci5beludirz2a'
const OTHER_BLOB = 'bafkreiclp443lavogvhj3d2ob2cxbfuscni2k5jk7bebjzg7khl3esabwq'
const STRANGER = 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa'
const createdAt = '2026-08-20T12:00:00.000Z'
const post = (text: string) => ({ $type: POST, text, createdAt })
const repo = (name: string) => `com.atproto.repo.${name}`
const sync = (name: string) => `com.atproto.sync.${name}`
const admin = (name: string) => `com.atproto.admin.${name}`

export const PNG: Uint8Array = Buffer.from(
  'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==',
  'base64',
)

const call = (side: Side, ann: Someone, name: string, method: string, body: Record<string, unknown>) =>
  side.say(`records: ${name}`, repo(method), { auth: ann, body: { repo: ann.did, ...body } })

export async function records(side: Side, ann: Someone): Promise<void> {
  const create = (name: string, body: Record<string, unknown>) =>
    call(side, ann, name, 'createRecord', { collection: POST, ...body })
  const { json } = await create('create', { record: post('one') })
  await create('by handle', { repo: 'ann.test', record: post('two') })
  await create('for somebody else', { repo: STRANGER, record: post('two') })
  await create('for an unknown handle', { repo: 'nobody.test', record: post('two') })
  await create('with a TID', { rkey: '3jui7kd54zh2y', record: post('two') })
  await create('with a key that is taken', { rkey: '3jui7kd54zh2y', record: post('two') })
  for (const rkey of ['key-1', 'a/b', '..', '', 'a b', 'a'.repeat(513), 'ch1nk'])
    await create(`key ${rkey.slice(0, 20)}`, { rkey, record: post('two') })
  const bad: Record<string, unknown> = {
    'no $type': { text: 'x', createdAt },
    'other $type': { $type: 'app.bsky.feed.like', text: 'x', createdAt },
    'does not fit': { $type: POST, createdAt },
    'bad date': { ...post('x'), createdAt: 'yesterday' },
    'a fraction': { ...post('x'), more: 1.5 },
    'a bad link': { ...post('x'), more: { $link: 'x' } },
    'bad bytes': { ...post('x'), more: { $bytes: '!' } },
    'legacy blob': { ...post('x'), more: { cid: OTHER_BLOB, mimeType: 'image/png' } },
    'text too long': post('a'.repeat(4_000)),
    'a string': 'x',
    null: null,
    'an array': [],
  }
  for (const [name, record] of Object.entries(bad)) await create(name, { record })
  await create('does not fit, unvalidated', { validate: false, record: { $type: POST, createdAt } })
  await create('wrong swap', { swapCommit: OTHER_CID, record: post('x') })
  await create('malformed swap', { swapCommit: 'x', record: post('x') })
  await create('unknown kind', { collection: NOTE, record: { a: 1 } })
  await create('unknown kind validated', { collection: NOTE, validate: true, record: { $type: NOTE } })
  await create('key and record wrong', { rkey: 'self', record: { $type: POST, text: 5 } })
  for (const collection of ['site.standard.document', 'site.standard.publication', 'site.standard.theme.basic'])
    await create(`nothing as ${collection}`, { collection, validate: true, record: {} })
  const site = { site: 'https://a.example', title: 'A', publishedAt: createdAt, content: { $type: 'com.example.text' } }
  await create('a document', { collection: 'site.standard.document', validate: true, record: site })
  await create('known kind validated', { validate: true, record: post('v') })
  await create('bad collection', { collection: 'x', record: {} })
  const block = { collection: 'app.bsky.graph.block', record: { subject: STRANGER, createdAt } }
  await create('block', block)
  await create('block again', block)
  const blocks = { repo: ann.did, collection: 'app.bsky.graph.block' }
  await side.say('records: blocks', repo('listRecords'), { params: blocks })
  await puts(side, ann, json.cid)
  await batches(side, ann, json.cid)
  await reads(side, ann, json)
}

async function puts(side: Side, ann: Someone, cid: string): Promise<void> {
  const put = (name: string, body: Record<string, unknown>) =>
    call(side, ann, name, 'putRecord', { collection: NOTE, rkey: 'n', record: { $type: NOTE, name }, ...body })
  const profile = { $type: PROFILE, displayName: 'Ann' }
  await call(side, ann, 'profile', 'createRecord', { collection: PROFILE, record: profile })
  await put('profile elsewhere', { collection: PROFILE, rkey: 'other', record: profile })
  await put('profile again', { collection: PROFILE, rkey: 'self', record: profile })
  await put('profile new', { collection: PROFILE, rkey: 'self', record: { ...profile, displayName: 'A' } })
  await put('profile the same', { collection: PROFILE, rkey: 'self', record: { ...profile, displayName: 'A' } })
  await put('put', { swapRecord: null })
  await put('put where there is one', { swapRecord: null, record: { $type: NOTE, b: 1 } })
  await put('put wrong swap', { swapRecord: cid })
  await put('put wrong commit', { swapCommit: cid })
  await put('put wrong commit and swap', { swapCommit: cid, swapRecord: OTHER_CID, record: { $type: NOTE, c: 1 } })
  await put('put nothing', { record: undefined })
  await put('put without a key', { rkey: undefined })
  const remove = (name: string, body: Record<string, unknown>) =>
    call(side, ann, name, 'deleteRecord', { collection: NOTE, rkey: 'n', ...body })
  await remove('delete what is not', { rkey: 'zzz' })
  await remove('delete wrong swap', { swapRecord: cid })
  await remove('delete wrong commit', { swapCommit: cid })
  await remove('delete wrong swap of what is not', { rkey: 'q', swapRecord: cid })
  await remove('delete', {})
  await remove('delete no key', { rkey: undefined })
}

async function batches(side: Side, ann: Someone, cid: string): Promise<void> {
  const write = (name: string, writes: unknown, more = {}) =>
    call(side, ann, `writes: ${name}`, 'applyWrites', { writes, ...more })
  const one = (kind: string, rkey?: string, value?: object, collection = NOTE) => ({
    $type: `com.atproto.repo.applyWrites#${kind}`,
    collection,
    ...(rkey === undefined ? {} : { rkey }),
    ...(value === undefined ? {} : { value: { $type: collection, ...value } }),
  })
  await write('none', [])
  await write('several', [one('create', 'w1', { a: 1 }), one('create', undefined, { text: 'w', createdAt }, POST)])
  await write('update', [one('update', 'w1', { a: 2 })])
  await write('update what is not', [one('update', 'w9', {})])
  await write('create what is', [one('create', 'w1', {})])
  await write('delete what is not', [one('delete', 'w9')])
  await write('delete', [one('delete', 'w1')])
  await write('unknown kind', [one('burn', 'w1')])
  await write('no $type', [{ collection: NOTE, rkey: 'w1' }])
  await write('no list', 'x')
  await write('validated', [one('create', undefined, {})], { validate: true })
  await write('unvalidated', [one('create', undefined, {}, POST)], { validate: false })
  const many = Array.from({ length: 201 }, (_, i) => one('create', `m${i}`, {}))
  await write('too many', many)
  const large = Array.from({ length: 15 }, (_, i) => one('create', `l${i}`, { t: 'a'.repeat(60_000) }))
  await write('large', large)
  await write('wrong swap', [one('create', 's', {})], { swapCommit: cid })
  await write('made and changed', [one('create', 'mc', { a: 1 }), one('update', 'mc', { a: 2 })])
  await write('deleted and made', [one('delete', 'mc'), one('create', 'mc', { a: 3 })])
  await write('the second is wrong', [one('create', 'ok', {}), one('create', '3jui7kd54zh2b', { text: 5 }, POST)])
  await write('the same key twice', [one('create', 'd', {}), one('create', 'd', {})])
}

async function reads(side: Side, ann: Someone, { uri, cid }: { uri: string; cid: string }): Promise<void> {
  const rkey = uri.split('/').at(-1)!
  const get = (name: string, params: Record<string, unknown>) =>
    side.say(`reads: ${name}`, repo('getRecord'), { params: { repo: ann.did, collection: POST, rkey, ...params } })
  await get('one', {})
  await get('by handle', { repo: 'ann.test' })
  await get('by handle in capitals', { repo: 'ANN.test' })
  await get('by CID', { cid })
  await get('other CID', { cid: OTHER_CID })
  await get('malformed CID', { cid: 'x' })
  await get('none', { rkey: 'none' })
  await get('of nobody', { repo: 'nobody.test' })
  await get('of a stranger', { repo: STRANGER })
  await get('malformed key', { rkey: 'a b' })
  await get('malformed collection', { collection: 'x' })
  const list = (name: string, params: Record<string, unknown>) =>
    side.say(`reads: list: ${name}`, repo('listRecords'), { params: { repo: ann.did, collection: POST, ...params } })
  const { json } = await side.ask(repo('listRecords'), { params: { repo: ann.did, collection: POST, limit: 2 } })
  side.note('reads: list: two', json.records.length)
  side.note('reads: list: its cursor is the last key', json.cursor === json.records.at(-1).uri.split('/').at(-1))
  await list('all', {})
  await list('reversed', { reverse: true })
  await list('beyond', { cursor: '1' })
  await list('empty', { collection: 'com.example.none' })
  await list('of nobody', { repo: 'nobody.test' })
  await list('limit 0', { limit: 0 })
  await list('limit 101', { limit: 101 })
  await list('reverse nonsense', { reverse: 'maybe' })
  await list('one page', { collection: PROFILE })
  for (const who of [ann.did, 'ann.test', 'nobody.test', STRANGER])
    await side.say(`describeRepo of ${who}`.replace(ann.did, 'ann'), repo('describeRepo'), { params: { repo: who } })
}

export async function blobs(side: Side, ann: Someone): Promise<void> {
  const upload = (name: string, body: Uint8Array | string | typeof NONE, type?: string) => {
    const bytes = typeof body === 'string' ? new TextEncoder().encode(body) : body
    const headers: Record<string, string> = type === undefined ? {} : { 'content-type': type }
    return side.say(`blobs: upload ${name}`, repo('uploadBlob'), { verb: 'POST', auth: ann, body: bytes, headers })
  }
  const { json } = await upload('png', PNG, 'image/png')
  for (const type of ['text/plain', '*/*', 'application/octet-stream', 'image/jpeg'])
    await upload(`png as ${type}`, PNG, type)
  for (const type of ['text/plain', 'text/plain; charset=utf-8', 'application/json', 'nonsense', 'example/thing'])
    await upload(`text as ${type}`, 'hello', type)
  await upload('html', '<html><script>1</script></html>', 'text/html')
  await upload('without a type', 'hello')
  await upload('empty', '', 'text/plain')
  await upload('nothing', NONE)
  const cid = json.blob.ref.$link
  const get = (name: string, params: Record<string, unknown> = {}, ask = {}) =>
    side.say(`blobs: ${name}`, sync('getBlob'), { params: { did: ann.did, cid, ...params }, ...ask })
  await get('loose')
  await get('loose, own', {}, { auth: ann })
  const put = (name: string, avatar: object, more = {}) => {
    const record = { $type: PROFILE, avatar: { ...json.blob, ...avatar }, ...more }
    const body = { repo: ann.did, collection: PROFILE, rkey: 'self', record }
    return side.say(`blobs: ${name}`, repo('putRecord'), { auth: ann, body })
  }
  await put('used', {})
  await put('unknown', { ref: { $link: OTHER_BLOB } })
  await put('other type', { mimeType: 'image/jpeg' })
  await put('other size', { size: 5 })
  await put('type not allowed', { mimeType: 'text/plain' })
  await put('too large', { size: 10_000_000 })
  await get('in use')
  await get('none', { cid: OTHER_BLOB })
  await get('malformed', { cid: 'x' })
  await get('of nobody', { did: STRANGER })
  await get('malformed DID', { did: 'x' })
  await get('head', {}, { verb: 'HEAD' })
  const list = (name: string, params: object) =>
    side.say(`blobs: list${name}`, sync('listBlobs'), { params: { did: ann.did, ...params } })
  await list('', {})
  await list(', bad cursor', { cursor: 'x' })
  await list(', bad since', { since: 'x' })
  await list(', since late', { since: '7zzzzzzzzzzzz' })
  await side.say('blobs: missing', repo('listMissingBlobs'), { auth: ann })
  await side.say('blobs: missing, bad cursor', repo('listMissingBlobs'), { auth: ann, params: { cursor: 'x' } })
  await hide(side, ann, cid)
  await get('hidden')
  await get('hidden, own', {}, { auth: ann })
  await get('hidden, admin', {}, { auth: ADMIN })
  await upload('hidden again', PNG, 'image/png')
  await put('hidden used', {}, { displayName: 'B' })
  const subject = { $type: 'com.atproto.admin.defs#repoBlobRef', did: ann.did, cid }
  const lift = { subject, takedown: { applied: false } }
  await side.say('blobs: let go', admin('updateSubjectStatus'), { auth: ADMIN, body: lift })
  await get('back')
}

async function hide(side: Side, { did }: Someone, cid: string): Promise<void> {
  const body = {
    subject: { $type: 'com.atproto.admin.defs#repoBlobRef', did, cid },
    takedown: { applied: true, ref: 'r1' },
  }
  const status = (name: string) =>
    side.say(`blobs: ${name}`, admin('getSubjectStatus'), { auth: ADMIN, params: { did, blob: cid } })
  await status('status')
  await side.say('blobs: taken down', admin('updateSubjectStatus'), { auth: ADMIN, body })
  await status('status then')
}

export async function preferences(side: Side): Promise<void> {
  const kim = await side.signUp('kim')
  const PUT = 'app.bsky.actor.putPreferences'
  const put = (name: string, preferences: unknown) =>
    side.say(`preferences: ${name}`, PUT, { auth: kim, body: { preferences } })
  const personal = { $type: 'app.bsky.actor.defs#personalDetailsPref', birthDate: '1990-01-01T00:00:00Z' }
  await put('good', [{ $type: 'app.bsky.actor.defs#adultContentPref', enabled: true }])
  await put('unknown of the namespace', [{ $type: 'app.bsky.actor.defs#unheardPref', a: 1 }])
  await put('of another namespace', [{ $type: 'com.example.pref', a: 1 }])
  await put('without a type', [{ a: 1 }])
  await put('no list', {})
  await put('personal', [personal])
  await side.say('preferences: all', 'app.bsky.actor.getPreferences', { auth: kim })
  const { json } = await side.ask('com.atproto.server.createAppPassword', { auth: kim, body: { name: 'a' } })
  const login = { identifier: 'kim.test', password: json.password }
  const session = await side.ask('com.atproto.server.createSession', { body: login })
  const auth = `Bearer ${session.json.accessJwt}`
  await side.say('preferences: by an app', 'app.bsky.actor.getPreferences', { auth })
  await side.say('preferences: put by an app', PUT, { auth, body: { preferences: [personal] } })
}
