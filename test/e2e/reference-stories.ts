// Lives of some people as a seed draws them: each server is asked the same in the same order, with what it has answered before.
import { PNG } from './reference-records.ts'
import { ADMIN, type Ask, NONE, type Reply, type Said, type Side } from './reference-side.ts'

const POST = 'app.bsky.feed.post'
const LIKE = 'app.bsky.feed.like'
const PROFILE = 'app.bsky.actor.profile'
const NOTE = 'com.example.note'
const NOBODY = 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa'
const OTHER_CID = 'bafyreidfayvfuwqa7qlnopdjiqrxzs6blmoeu4rujcjtnci5beludirz2a'
const KEYS = ['a', 'b', 'self', '3jui7kd54zh2y', '3kaaaaaaaaa2y', '3kaaaaaaaab2y']
const BAD_KEYS = ['a/b', '..', '', 'a b', 'a'.repeat(513)]
const createdAt = '2026-08-20T12:00:00.000Z'
const server = (name: string) => `com.atproto.server.${name}`
const repo = (name: string) => `com.atproto.repo.${name}`
const sync = (name: string) => `com.atproto.sync.${name}`
const admin = (name: string) => `com.atproto.admin.${name}`
const identity = (name: string) => `com.atproto.identity.${name}`

/** Chances that a seed fixes. Each call draws once, whatever it chooses from, so that two servers stay in step. */
class Dice {
  #state: number

  constructor(seed: number) {
    this.#state = seed >>> 0
  }

  /** From 0 up to 1, by mulberry32. */
  roll(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0
    let t = this.#state
    t = Math.imul(t ^ (t >>> 15), t | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }

  chance(p: number): boolean {
    return this.roll() < p
  }

  below(n: number): number {
    return Math.floor(this.roll() * n)
  }

  pick<T>(list: readonly T[]): T | undefined {
    return list[this.below(list.length)]
  }

  one<T>(list: readonly [T, ...T[]]): T {
    return list[this.below(list.length)]!
  }
}

/** Somebody in a story, with what the server gave them. */
interface Person {
  did: string
  handle: string
  email: string
  password: string
  access: string[]
  refresh: string[]
  apps: string[]
  /** Codes by what they are for. */
  codes: Record<string, string>
  isGone: boolean
}

/** A call, and what follows from its answer. */
interface Step {
  method: string
  ask: Ask
  after?: (reply: Reply) => Promise<void> | void
}

const bearer = (token: string | undefined) => `Bearer ${token ?? 'x'}`

export class Story {
  readonly #side: Side
  readonly #seed: number
  readonly #dice: Dice
  readonly #people: Person[] = []
  readonly #uris: string[] = []
  readonly #cids: string[] = []
  readonly #blobs: unknown[] = []

  constructor(side: Side, seed: number) {
    this.#side = side
    this.#seed = seed
    this.#dice = new Dice(seed)
  }

  /** Lets so many things happen; each is kept under the name of the story, its number and the method. */
  async run(steps: number): Promise<void> {
    for (let i = 0; i < steps; i++) {
      const { method, ask, after } = this.#next()
      const reply = await this.#side.say(`story ${this.#seed}, ${i}: ${method}`, method, ask)
      if (reply.status === 200) await after?.(reply)
    }
  }

  #next(): Step {
    const dice = this.#dice
    if (this.#people.length < 2) return this.#signUp(`p${this.#seed}x${this.#people.length}.test`)
    const who = dice.pick(this.#people)!
    const draw = dice.below(100)
    if (draw < 34) return this.#writes(who)
    if (draw < 52) return this.#reads(who)
    if (draw < 68) return this.#sessions(who)
    if (draw < 80) return this.#mails(who)
    if (draw < 92) return this.#operators(who)
    return this.#lives(who)
  }

  #auth({ access, refresh, apps }: Person): string {
    const dice = this.#dice
    const other = dice.pick(this.#people)!
    const own = bearer(access.at(-1))
    const odd = [
      bearer(refresh.at(-1)),
      bearer(other.access.at(-1)),
      bearer(apps.at(-1) ?? access.at(-1)),
      ADMIN,
      bearer('x'),
    ]
    return dice.chance(0.8) ? own : (dice.pick(odd) ?? own)
  }

  #signUp(handle: string): Step {
    const n = this.#people.length
    const wanted = { handle, email: `p${this.#seed}x${n}@example.com`, password: `password ${n}` }
    return {
      method: server('createAccount'),
      ask: { body: wanted },
      after: ({ json }) => {
        this.#side.name(json.did, `<${this.#seed}.${n}>`)
        const { did, accessJwt, refreshJwt } = json
        const person = { ...wanted, handle: json.handle, did, access: [accessJwt], refresh: [refreshJwt], apps: [] }
        this.#people.push({ ...person, codes: {}, isGone: false })
      },
    }
  }

  // What people write.

  #key(): string | undefined {
    const key = this.#dice.pick([...KEYS, ...KEYS, ...KEYS, undefined, undefined, ...BAD_KEYS])
    return key
  }

  #cid(): string {
    return this.#dice.pick(this.#cids.slice(-8)) ?? OTHER_CID
  }

  #record(collection: string): object {
    const dice = this.#dice
    const subject = { uri: this.#uris.at(-1) ?? `at://${NOBODY}/${POST}/a`, cid: this.#cid() }
    const text = dice.one(['hello', '', 'ä😀', 'a'.repeat(4_000)])
    const blob = dice.chance(0.4) ? dice.pick(this.#blobs) : undefined
    const content: Record<string, object> = {
      [POST]: { text, createdAt },
      [LIKE]: { subject, createdAt },
      [PROFILE]: { displayName: text, ...(blob ? { avatar: blob } : {}) },
      [NOTE]: { text, ...(blob ? { blob } : {}) },
    }
    const type = dice.one([collection, collection, collection, collection, undefined, POST])
    return { ...(type && { $type: type }), ...content[collection] }
  }

  #place(): { collection: string; rkey?: string } {
    const collection = this.#dice.one([POST, NOTE, NOTE, LIKE, PROFILE])
    const rkey = this.#key() ?? (collection === PROFILE ? 'self' : undefined)
    return { collection, ...(rkey === undefined ? {} : { rkey }) }
  }

  #known = (reply: Reply): void => {
    const { uri, cid, commit, results = [] } = reply.json
    for (const made of [{ uri, cid }, ...results]) if (made.uri) this.#uris.push(made.uri)
    for (const it of [cid, commit?.cid]) if (it) this.#cids.push(it)
  }

  #writes(who: Person): Step {
    const dice = this.#dice
    const place = this.#place()
    const validate = dice.one([undefined, undefined, true, false])
    const record = this.#record(place.collection)
    const swap = dice.chance(0.15) ? { swapCommit: this.#cid() } : {}
    const swapRecord = dice.chance(0.15) ? { swapRecord: dice.chance(0.4) ? null : this.#cid() } : {}
    const where = { repo: dice.one([who.did, who.did, who.handle]), ...place, ...swap }
    const auth = this.#auth(who)
    const ask = (method: string, body: object): Step => ({
      method: repo(method),
      ask: { auth, body },
      after: this.#known,
    })
    switch (dice.below(6)) {
      case 0:
      case 1:
        return ask('createRecord', { ...where, validate, record })
      case 2:
        return ask('putRecord', { ...where, ...swapRecord, validate, record })
      case 3:
        return ask('deleteRecord', { ...where, ...(dice.chance(0.3) ? this.#deletion() : {}) })
      case 4:
        return ask('applyWrites', { repo: who.did, validate, writes: this.#batch(), ...swap })
      default:
        return this.#upload(auth)
    }
  }

  #deletion() {
    const [, , , collection, rkey] = (this.#dice.pick(this.#uris) ?? '').split('/')
    return { collection, rkey }
  }

  #batch(): object[] {
    const dice = this.#dice
    return Array.from({ length: 1 + dice.below(3) }, () => {
      const kind = dice.one(['create', 'create', 'update', 'delete'])
      const place = this.#place()
      const value = this.#record(place.collection)
      return { $type: `com.atproto.repo.applyWrites#${kind}`, ...place, ...(kind === 'delete' ? {} : { value }) }
    })
  }

  #upload(auth: string): Step {
    const [type, bytes] = this.#dice.one([
      ['image/png', PNG],
      ['text/plain', new TextEncoder().encode('hello')],
      ['image/jpeg', PNG],
      ['example/unheard', new Uint8Array(100)],
    ])
    const after = ({ json }: Reply) => void this.#blobs.push(json.blob)
    return {
      method: repo('uploadBlob'),
      ask: { verb: 'POST', auth, body: bytes, headers: { 'content-type': type } },
      after,
    }
  }

  // What is read.

  #reads(who: Person): Step {
    const dice = this.#dice
    const { did } = who
    const auth = dice.chance(0.4) ? { auth: this.#auth(who) } : {}
    const place = this.#place()
    const rkey = place.rkey ?? 'a'
    const { collection } = place
    const limit = dice.one([undefined, 1, 2, 100, 101, 0, 'x'])
    const page = limit === undefined ? {} : { limit }
    const reverse = dice.chance(0.3) ? { reverse: dice.one(['true', 'false', 'x']) } : {}
    const cid = dice.chance(0.3) ? { cid: this.#cid() } : {}
    const blob = (dice.pick(this.#blobs) as { ref: { $link: string } } | undefined)?.ref.$link ?? OTHER_CID
    const reads: [string, Record<string, unknown>][] = [
      [repo('getRecord'), { repo: did, collection, rkey, ...cid }],
      [repo('getRecord'), { repo: who.handle, collection, rkey }],
      [repo('listRecords'), { repo: did, collection, ...page, ...reverse }],
      [repo('listMissingBlobs'), page],
      [sync('getLatestCommit'), { did }],
      [sync('getRepoStatus'), { did }],
      [sync('listBlobs'), { did, ...page }],
      [sync('getBlob'), { did, cid: blob }],
      [identity('resolveHandle'), { handle: who.handle }],
    ]
    const [method, params] = dice.pick(reads)!
    return { method, ask: { params, ...auth } }
  }

  // Who signs in and out.

  #sessions(who: Person): Step {
    const dice = this.#dice
    const auth = this.#auth(who)
    const identifier = dice.one([who.handle, who.did, who.email, who.email.toUpperCase(), 'nobody.test'])
    const password = dice.one([who.password, who.password, who.apps.at(0) ?? who.password, 'wrong'])
    const name = dice.one(['phone', 'tablet', 'none'])
    const privileged = dice.one([undefined, true, false])
    const refresh = bearer(dice.pick(who.refresh))
    const keep = ({ json }: Reply) => {
      who.access.push(json.accessJwt)
      who.refresh.push(json.refreshJwt)
    }
    const steps: Step[] = [
      { method: server('createSession'), ask: { body: { identifier, password } }, after: keep },
      { method: server('refreshSession'), ask: { verb: 'POST', body: NONE, auth: refresh }, after: keep },
      { method: server('getSession'), ask: { auth } },
      {
        method: server('createAppPassword'),
        ask: { auth, body: { name: `${name} ${this.#uris.length}`, privileged } },
        after: ({ json }) => void who.apps.push(json.password),
      },
      { method: server('listAppPasswords'), ask: { auth } },
      { method: server('revokeAppPassword'), ask: { auth, body: { name } } },
      { method: server('getServiceAuth'), ask: { auth, params: { aud: 'did:web:a.example', lxm: this.#method() } } },
    ]
    return dice.pick(steps)!
  }

  #method(): string {
    return this.#dice.one([
      'app.bsky.feed.getTimeline',
      'chat.bsky.convo.listConvos',
      server('createAccount'),
      server('getSession'),
      repo('uploadBlob'),
      'nonsense',
    ])
  }

  // What mails go with.

  #code(who: Person, purpose: string): string {
    const dice = this.#dice
    const other = dice.pick(Object.values(dice.pick(this.#people)!.codes))
    const own = who.codes[purpose]
    return dice.one([own, own, own?.toLowerCase(), other, 'AAAAA-BBBBB']) ?? 'AAAAA-AAAAA'
  }

  #mails(who: Person): Step {
    const dice = this.#dice
    const auth = this.#auth(who)
    const post = (method: string, body: unknown, after: Step['after']): Step => {
      return { method, ask: { verb: 'POST', auth, body }, ...(after && { after }) }
    }
    const { mailbox } = this.#side.server
    const taken = (purpose: string) => async () => {
      const { code, to } = await mailbox.next()
      const whose = this.#people.find(({ email }) => email.toLowerCase() === to[0]!.toLowerCase())
      if (whose && code) whose.codes[purpose] = code
    }
    const email = dice.one([who.email, who.email, `new${this.#uris.length}x${this.#seed}@example.com`, 'nonsense'])
    const password = `password ${dice.below(1_000)}`
    const owner = this.#people.find(({ codes }) => codes.reset === who.codes.reset)
    const steps: Step[] = [
      post(server('requestEmailConfirmation'), NONE, taken('confirm')),
      post(server('confirmEmail'), { email: who.email, token: this.#code(who, 'confirm') }, undefined),
      post(server('requestEmailUpdate'), NONE, async ({ json }) =>
        json.tokenRequired ? taken('update')() : undefined,
      ),
      post(server('updateEmail'), { email, ...(dice.chance(0.5) ? { token: this.#code(who, 'update') } : {}) }, () => {
        const caller = this.#people.find(({ access }) => access.some(token => auth === bearer(token)))
        if (caller) caller.email = email
      }),
      post(identity('requestPlcOperationSignature'), NONE, taken('plc')),
      post(server('requestAccountDelete'), NONE, taken('delete')),
      { method: server('resetPassword'), ask: { body: { token: who.codes.reset ?? 'AAAAA-AAAAA', password } } },
    ]
    const reset: Step = {
      method: server('requestPasswordReset'),
      ask: { body: { email: who.email } },
      after: taken('reset'),
    }
    const step = dice.pick(who.isGone ? steps : [...steps, reset])!
    if (step.method === server('resetPassword') && owner) step.after = () => void (owner.password = password)
    return step
  }

  // What operators do.

  #operators({ did, handle, email, ...who }: Person): Step {
    const dice = this.#dice
    const auth = dice.chance(0.9) ? ADMIN : bearer(who.access.at(-1))
    const at = this.#uris.at(-1)
    const subjects = [
      { $type: 'com.atproto.admin.defs#repoRef', did },
      ...(at ? [{ $type: 'com.atproto.repo.strongRef', uri: at, cid: this.#cid() }] : []),
    ]
    const subject = dice.pick(subjects)
    const applied = dice.chance(0.3)
    const steps: [string, Ask][] = [
      ['getAccountInfo', { params: { did } }],
      ['getAccountInfos', { params: { dids: [did, NOBODY] } }],
      ['getSubjectStatus', { params: { did } }],
      ['updateSubjectStatus', { body: { subject, takedown: { applied, ...(applied ? { ref: 'r' } : {}) } } }],
      ['updateSubjectStatus', { body: { subject: subjects[0], takedown: { applied: false } } }],
      ['updateSubjectStatus', { body: { subject: subjects[0], deactivated: { applied } } }],
      ['disableAccountInvites', { body: { account: did } }],
      ['enableAccountInvites', { body: { account: did } }],
      ['updateAccountEmail', { body: { account: dice.one([did, handle]), email } }],
    ]
    const [method, ask] = dice.pick(steps)!
    return { method: admin(method), ask: { auth, ...ask } }
  }

  // What becomes of them.

  #lives(who: Person): Step {
    const dice = this.#dice
    const auth = this.#auth(who)
    const handle = dice.one([
      `q${this.#seed}y${this.#uris.length}.test`,
      dice.pick(this.#people)!.handle,
      'admin.test',
      'x.test',
      'somebody.example.com',
    ])
    const renamed = () => {
      const caller = this.#people.find(({ access }) => access.some(token => auth === bearer(token)))
      if (caller) caller.handle = handle
    }
    const leaving = { did: who.did, password: who.password, token: this.#code(who, 'delete') }
    const left = () => void (who.isGone = true)
    const steps: Step[] = [
      { method: server('deactivateAccount'), ask: { auth, body: {} } },
      { method: server('activateAccount'), ask: { auth, verb: 'POST', body: NONE } },
      { method: server('activateAccount'), ask: { auth, verb: 'POST', body: NONE } },
      { method: server('checkAccountStatus'), ask: { auth } },
      { method: identity('updateHandle'), ask: { auth, body: { handle } }, after: renamed },
      { method: server('deleteAccount'), ask: { body: leaving }, after: left },
      this.#signUp(`r${this.#seed}z${this.#uris.length}.test`),
    ]
    return dice.pick(steps)!
  }
}

/** Whether what differs in a story is meant to: what {@link intended} says of steps by name, said of answers. */
export function excused(name: string, ours: Said, theirs: Said): boolean {
  const method = name.split(': ')[1]
  const [our, their] = [ours.body, theirs.body] as [Record<string, unknown>, Record<string, unknown>]
  if (theirs.status === 500 && ours.status < 500) return true
  if (ours.error === 'AccountNotFound' || ours.error === 'InvalidMimeType') return true
  switch (method) {
    case identity('resolveHandle'):
      return ours.status === 200
    case sync('getBlob'):
      // Owners and operators see what nothing refers to yet; and no charset is made up.
      return ours.status === 200
    case server('checkAccountStatus'):
      return (
        [our.repoCommit, our.activated, our.indexedRecords].join() ===
        [their.repoCommit, their.activated, their.indexedRecords].join()
      )
    case server('refreshSession'):
      return ours.message === 'Token has been revoked'
    case admin('updateSubjectStatus'):
    case admin('disableAccountInvites'):
    case admin('enableAccountInvites'):
      return ours.status === 400
    case repo('listRecords'):
      // Pages go on behind what is hidden.
      return JSON.stringify(our.records) === JSON.stringify(their.records)
    default:
      return false
  }
}
