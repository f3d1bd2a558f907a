package wire_test

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"testing"

	"drover/internal/fault"
	"drover/internal/fleet/wire"

	"pgregory.net/rapid"
)

type note struct{ N int }

func TestSealedMessagesOpenAloneAndForTheirPurposeOnly(t *testing.T) {
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 300).Draw(t, "n")
		var bodies [][]byte
		for i := range n {
			bodies = append(bodies, fmt.Appendf(nil, `{"N":%d}`, i))
		}
		all := wire.SealAll(key, wire.ForCommand, bodies)
		i := rapid.IntRange(0, n-1).Draw(t, "i")
		var got note
		if err := wire.Open(pub, wire.ForCommand, all[i], &got); err != nil || got.N != i {
			t.Fatalf("message %d of %d: %+v, %v", i, n, got, err)
		}
		if err := wire.Open(other, wire.ForCommand, all[i], &got); fault.Code(err) != "signature_bad" {
			t.Fatalf("another server's key opens it: %v", err)
		}
		if err := wire.Open(pub, wire.ForStop, all[i], &got); fault.Code(err) != "signature_bad" {
			t.Fatalf("it is good for another purpose: %v", err)
		}
		// Any byte that is changed: in the body, the way, the index or the signature.
		b := append([]byte(nil), all[i]...)
		at := rapid.IntRange(0, len(b)-1).Draw(t, "at")
		b[at] ^= byte(rapid.IntRange(1, 255).Draw(t, "flip"))
		var changed note
		if err := wire.Open(pub, wire.ForCommand, b, &changed); err == nil && changed.N != i {
			t.Fatalf("byte %d was changed and the message reads %d", at, changed.N)
		}
		// The body of one with the way of another.
		if j := (i + 1) % n; j != i {
			mixed := append(append([]byte(nil), all[i][:len(all[i])-len(bodies[i])]...), bodies[j]...)
			if err := wire.Open(pub, wire.ForCommand, mixed, &got); err == nil {
				t.Fatal("a message opens with the way of another")
			}
		}
	})
}

func FuzzOpen(f *testing.F) {
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		f.Fatal(err)
	}
	for _, b := range wire.SealAll(key, wire.ForCommand, [][]byte{[]byte(`{"N":1}`), []byte(`{"N":2}`), []byte(`{"N":3}`)}) {
		f.Add(b)
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		var n note
		err := wire.Open(pub, wire.ForCommand, b, &n)
		if err == nil && n.N != 1 && n.N != 2 && n.N != 3 {
			t.Fatalf("%q opens", b)
		}
		_ = wire.Peek(b, &json.RawMessage{})
	})
}
