// Package durable puts files and directories on disk so that they are either
// wholly there after a power cut or not there at all.
//
// The order of system calls is the whole point of the room, so every function
// documents its own. The rules behind them:
//
//   - Data is flushed before its name appears: a name that can be seen never
//     leads to a torn file (rename is atomic, but only in the directory, not in
//     the data).
//   - A name is safe only after its directory was flushed too.
//   - A temporary file lives in the directory of its final name, hence in the
//     same file system, and is removed on every failure.
//   - A failed flush is final: the kernel may have dropped the dirty pages, so
//     the file is thrown away and never flushed a second time.
//
// Linux only. No knowledge of what is stored may come in here.
package durable
