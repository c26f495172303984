/** Which e-mail addresses an account may have. */
import { Refused } from '@millisky/core/errors'
import { isDisposableEmailDomain } from 'disposable-email-domains-js'
import { type Account, type Store, Taken } from './store/store.ts'

const ADDRESS =
  /^(?!\.|.*\.[.@])[^\s\p{Cc}@<>()[\],;:"\\]{1,64}@((?:[\p{L}\p{N}](?:[\p{L}\p{N}-]{0,61}[\p{L}\p{N}])?\.)+\p{L}(?:[\p{L}\p{N}-]*[\p{L}\p{N}])?)$/u
const LENGTH_MAX = 254

/**
 * The address in lower case.
 *
 * @throws Refused for what is no address, and for domains that hand out addresses for minutes
 */
export function checkEmail(email: string): string {
  const address = email.trim().toLowerCase()
  const domain = ADDRESS.exec(address)?.[1]
  if (domain === undefined || address.length > LENGTH_MAX || isDisposableEmailDomain(domain)) {
    throw new Refused('InvalidRequest', 'This email address is not supported, please use a different email.')
  }
  return address
}

/**
 * Another mailbox, which is not confirmed yet; codes sent to the one before are worth nothing. The caller holds the
 * account's lane, so that no code for the old one confirms the new one. @throws Refused if in use
 */
export async function changeEmail(store: Store, account: Account, email: string): Promise<void> {
  try {
    await store.accounts.update(account.id, { email, emailConfirmedAt: null }, [])
  } catch (error) {
    if (!(error instanceof Taken)) throw error
    throw new Refused('InvalidRequest', 'This email address is already in use, please use a different email.')
  }
  await store.tickets.removeEmailTokens(account.id)
}
