/** `millisky dev --demo`: two accounts that talk to each other through the PDS's public methods. */
import { setTimeout } from 'node:timers/promises'

const HANDLES = ['alice.test', 'bob.test'] as const
const PASSWORD = 'demo-password'
const INTERVAL_MS = 3_000
const LINES = [
  'Hello! Is this thing on?',
  'Loud and clear. I read you through the Relay.',
  'Every event verified?',
  'Signature, structure, and undone back to the previous root.',
  'And if a disk is pulled now?',
  'Then what you were told is saved, is saved.',
] as const

interface Session {
  did: string
  handle: string
  accessJwt: string
}

interface Ref {
  uri: string
  cid: string
}

async function call<T>(pds: string, method: string, body: unknown, session?: Session): Promise<T> {
  const reply = await fetch(`${pds}/xrpc/${method}`, {
    method: 'POST',
    headers: {
      'content-type': 'application/json',
      ...(session ? { authorization: `Bearer ${session.accessJwt}` } : {}),
    },
    body: JSON.stringify(body),
    signal: AbortSignal.timeout(20_000),
  })
  const answer = (await reply.json()) as T & { error?: string; message?: string }
  if (!reply.ok) throw new Error(`${method}: ${answer.error ?? reply.status} ${answer.message ?? ''}`)
  return answer
}

async function signIn(pds: string, handle: string): Promise<Session> {
  try {
    return await call(pds, 'com.atproto.server.createSession', { identifier: handle, password: PASSWORD })
  } catch {
    return await call(pds, 'com.atproto.server.createAccount', {
      handle,
      email: `${handle.replace('.', '-')}@example.com`,
      password: PASSWORD,
    })
  }
}

function post(pds: string, session: Session, text: string, parent: Ref | null, root: Ref | null): Promise<Ref> {
  const record = {
    $type: 'app.bsky.feed.post',
    text,
    createdAt: new Date().toISOString(),
    ...(parent && root ? { reply: { root, parent } } : {}),
  }
  return call(
    pds,
    'com.atproto.repo.createRecord',
    { repo: session.did, collection: 'app.bsky.feed.post', record },
    session,
  )
}

/** Signs both in (making the accounts the first time), has them hold one conversation, and returns. */
export async function runDemo(pds: string, signal: AbortSignal): Promise<void> {
  const sessions = [await signIn(pds, HANDLES[0]), await signIn(pds, HANDLES[1])] as const
  process.stdout.write(`  Demo accounts: ${HANDLES.join(', ')}, password ${PASSWORD}\n\n`)
  let root: Ref | null = null
  let parent: Ref | null = null
  for (const [turn, text] of LINES.entries()) {
    if (signal.aborted) return
    const session = sessions[turn % 2] as Session
    const made: Ref = await post(pds, session, text, parent, root)
    root ??= made
    parent = made
    process.stdout.write(`  ${session.handle}: ${text}\n`)
    await setTimeout(INTERVAL_MS, undefined, { signal }).catch(() => undefined)
  }
  process.stdout.write('\n')
}
