// Firehose consumers of the ecosystem, as the tests see them: they collect, and keep every complaint.
import { ComAtprotoSyncSubscribeRepos } from '@atcute/atproto'
import { FirehoseSubscription } from '@atcute/firehose'
import { IdResolver, MemoryCache } from '@atproto/identity'
import { type Event, Firehose } from '@atproto/sync'

export interface Consumer<T> {
  events: T[]
  errors: unknown[]
  close(): Promise<void>
}

/** @atproto/sync's Firehose, which verifies each commit's proofs against the account's key. */
export function verifyingConsumer(service: string, plcUrl: string, cursor?: number): Consumer<Event> {
  const events: Event[] = []
  const errors: unknown[] = []
  const firehose = new Firehose({
    idResolver: new IdResolver({ plcUrl, didCache: new MemoryCache(), fetch: globalThis.fetch }),
    service: service.replace(/^http/, 'ws'),
    unauthenticatedHandles: true,
    subscriptionReconnectDelay: 200,
    maxReconnectSeconds: 1,
    getCursor: () => events.at(-1)?.seq ?? cursor,
    handleEvent: event => {
      events.push(event)
    },
    onError: err => {
      errors.push(err)
    },
  })
  void firehose.start()
  return { events, errors, close: () => firehose.destroy() }
}

/** A message of @atcute/firehose with what all kinds but #info share. */
export interface Message {
  $type: string
  seq: number
  did?: string
  repo?: string
  rev?: string
  ops?: { action: string; path: string }[]
  active?: boolean
  status?: string
  handle?: string
}

/** @atcute/firehose, which checks every message against the lexicon. */
export function atcuteConsumer(service: string, cursor?: number): Consumer<Message> {
  const events: Message[] = []
  const errors: unknown[] = []
  const subscription = new FirehoseSubscription({
    service: service.replace(/^http/, 'ws'),
    nsid: ComAtprotoSyncSubscribeRepos.mainSchema,
    params: () => {
      const from = events.at(-1)?.seq ?? cursor
      return from === undefined ? {} : { cursor: from }
    },
    validateEvents: true,
    onError: err => errors.push(err),
    ws: { minReconnectionDelay: 100, maxReconnectionDelay: 500 },
  })
  const iterator = subscription[Symbol.asyncIterator]()
  void (async () => {
    for (;;) {
      const { value, done } = await iterator.next()
      if (done) return
      events.push(value as unknown as Message)
    }
  })().catch(err => errors.push(err))
  return {
    events,
    errors,
    // Its pending `next` stays pending after that, so it is not waited for.
    close: async () => {
      await iterator.return?.()
    },
  }
}

/** One line for each thing that happened, the same for both consumers and both servers: what comparisons are made of. */
export function story(message: Message): string[] {
  const did = message.repo ?? message.did ?? ''
  const kind = message.$type.slice(message.$type.indexOf('#'))
  if (kind === '#commit') return (message.ops ?? []).map(op => `${did} ${op.action} ${op.path} ${message.rev}`)
  if (kind === '#account') return [`${did} account ${message.active} ${message.status ?? ''}`]
  if (kind === '#sync') return [`${did} sync ${message.rev}`]
  return [`${did} ${kind.slice(1)}`]
}

export function verifiedStory(event: Event): string[] {
  if (event.event === 'account') return [`${event.did} account ${event.active} ${event.status ?? ''}`]
  if (event.event === 'identity') return [`${event.did} identity`]
  if (event.event === 'sync') return [`${event.did} sync ${event.rev}`]
  return [`${event.did} ${event.event} ${event.collection}/${event.rkey} ${event.rev}`]
}
