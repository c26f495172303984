/** `millisky record` and `blob`: taking single records and blobs down. */
import { Command } from 'commander'
import { adminCommand, clientOf, didOf, type PdsOptions } from './pds-client.ts'
import { print } from './print.ts'

const DEFS = 'com.atproto.admin.defs'

type SubjectOf = (
  options: PdsOptions,
  ...named: string[]
) => Promise<{ subject: object; query: Record<string, string> }>

/** Adds `takedown`, `untakedown` and `status` of what `usage` names. */
function addTakedowns(group: Command, usage: string, subjectOf: SubjectOf): Command {
  const what = group.name()
  for (const applied of [true, false]) {
    const verb = applied ? 'takedown' : 'untakedown'
    const command = adminCommand(group, `${verb} ${usage}`, `${applied ? 'stop serving a' : 'serve again a'} ${what}`)
    if (applied) command.option('--ref <text>', 'a reference for your own records')
    command.action(async (...given: unknown[]) => {
      const { named, options } = callOf<{ ref?: string }>(given)
      const { subject, query } = await subjectOf(options, ...named)
      const takedown = applied ? { applied, ref: options.ref ?? String(Date.now()) } : { applied }
      await clientOf(options).procedure('com.atproto.admin.updateSubjectStatus', { subject, takedown })
      print(options, { ...query, takedown: applied })
    })
  }
  adminCommand(group, `status ${usage}`, `whether a ${what} is taken down`).action(async (...given: unknown[]) => {
    const { named, options } = callOf(given)
    const { query } = await subjectOf(options, ...named)
    const status = await clientOf(options).query<object>('com.atproto.admin.getSubjectStatus', query)
    print(options, { ...query, ...status, subject: undefined })
  })
  return group
}

/** Commander gives arguments, options, and the command, one after the other. */
function callOf<Options = object>(given: unknown[]): { named: string[]; options: PdsOptions & Options } {
  return { named: given.slice(0, -2) as string[], options: given.at(-2) as PdsOptions & Options }
}

export function recordCommand(): Command {
  const record = new Command('record').description('single records of a PDS: takedown, untakedown, status')
  return addTakedowns(record, '<at-uri>', async (options, uri) => {
    const [, repo, collection, rkey] = /^at:\/\/([^/]+)\/([^/]+)\/([^/]+)$/.exec(uri!) ?? []
    if (!repo) throw new Error('a record is named by its at:// URI')
    const client = clientOf(options)
    const did = await didOf(client, repo)
    const full = `at://${did}/${collection}/${rkey}`
    const found = await client
      .query<{ cid?: string }>('com.atproto.repo.getRecord', { repo: did, collection, rkey })
      // What is taken down is not shown; its address is enough then.
      .catch(() => ({ cid: NO_CID }))
    return {
      subject: { $type: 'com.atproto.repo.strongRef', uri: full, cid: found.cid ?? NO_CID },
      query: { uri: full },
    }
  })
}

/** Of nothing: takedowns go by the address of a record. */
const NO_CID = 'bafyreidykglsfhoixmivffc5uwhcgshx4j465xwqntbmu43nb2dzqwfvae'

export function blobCommand(): Command {
  const blob = new Command('blob').description('single blobs of a PDS: takedown, untakedown, status')
  return addTakedowns(blob, '<account> <cid>', async (options, name, cid) => {
    const did = await didOf(clientOf(options), name!)
    return { subject: { $type: `${DEFS}#repoBlobRef`, did, cid }, query: { did, blob: cid! } }
  })
}
