package sandbox

import (
	"encoding/binary"
	"fmt"
	"runtime"
)

const trialExit = 42

// trialELF is a static program that only exits with trialExit, so that a runtime
// can be tried on a host from which nothing else is known (ELF-64: header,
// one loadable segment, code).
func trialELF() ([]byte, error) {
	var code []byte
	var machine uint16
	switch runtime.GOARCH {
	case "amd64":
		machine = 62                                                           // EM_X86_64
		code = []byte{0xbf, trialExit, 0, 0, 0, 0xb8, 60, 0, 0, 0, 0x0f, 0x05} // mov edi,42; mov eax,60; syscall
	case "arm64":
		machine = 183                                                                               // EM_AARCH64
		for _, w := range []uint32{0xd2800000 | trialExit<<5, 0xd2800000 | 93<<5 | 8, 0xd4000001} { // mov x0,#42; mov x8,#93; svc #0
			code = binary.LittleEndian.AppendUint32(code, w)
		}
	default:
		return nil, fmt.Errorf("no trial program for %s", runtime.GOARCH)
	}
	const base, head = 0x400000, 64 + 56
	le := binary.LittleEndian
	b := append([]byte{0x7f, 'E', 'L', 'F', 2, 1, 1}, make([]byte, 9)...)
	b = le.AppendUint16(b, 2) // ET_EXEC
	b = le.AppendUint16(b, machine)
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, base+head) // entry
	b = le.AppendUint64(b, 64)        // program headers
	b = le.AppendUint64(b, 0)
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{64, 56, 1, 0, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	b = le.AppendUint32(b, 1) // PT_LOAD
	b = le.AppendUint32(b, 5) // read and execute
	size := uint64(head + len(code))
	for _, v := range []uint64{0, base, base, size, size, 0x1000} {
		b = le.AppendUint64(b, v)
	}
	return append(b, code...), nil
}
