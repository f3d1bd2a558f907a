// Package sign is the server's side of signing: which keys there are, which tags they sign
// for, the queue of what is to be signed, and every signature that was made.
//
// No private key comes near it: they live in the signer, a process and a user of its own
// (sign/signer), reached by the types of sign/wire. A signature is believed only after it
// was verified here.
package sign
