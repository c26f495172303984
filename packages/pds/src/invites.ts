/** Invite codes: what they look like, and how many an account may hand out as time goes by. */
import { base32 } from '@millisky/core/bytes'
import type { InviteCode } from './store/store.ts'

/** Codes an account can hold unused, of those it makes itself. */
const OPEN_MAX = 5
export const TOKEN_RANDOM_BYTES = 7

/** Ten characters in two groups, 50 bits. @param random - 7 random bytes */
export function groupedToken(random: Uint8Array): string {
  const text = base32(random)
  return `${text.slice(0, 5)}-${text.slice(5, 10)}`
}

/**
 * A code that begins with the host name, its dots as dashes so that it is no link: `pds-example-com-abcde-fghij`.
 *
 * @param random - 7 random bytes
 */
export function inviteCode(hostname: string, random: Uint8Array): string {
  return `${hostname.replaceAll('.', '-')}-${groupedToken(random)}`
}

export interface RoutineInvites {
  accountCreatedAt: number
  codes: readonly InviteCode[]
  /** Since when codes are earned, and one in how long. Milliseconds. */
  epoch: number
  intervalMs: number
  now: number
}

/**
 * How many codes an account may make now, and how many of its own it then has in all. One is earned in each interval of the
 * account's life after the epoch; codes that the admin gave it do not count.
 */
export function routineInvites({ accountCreatedAt, codes, epoch, intervalMs, now }: RoutineInvites) {
  const own = codes.filter(({ createdBy }) => createdBy !== 'admin')
  const open = own.filter(({ disabled, uses, usedBy }) => !disabled && uses > usedBy.length).length
  const earnedUntil = (time: number) => Math.floor((time - accountCreatedAt) / intervalMs)
  const earned = earnedUntil(now) - (accountCreatedAt < epoch ? earnedUntil(epoch) : 0)
  const made = own.filter(({ createdAt }) => createdAt > epoch).length
  const count = Math.max(0, Math.min(OPEN_MAX - open, earned - made))
  return { count, total: own.length + count }
}
