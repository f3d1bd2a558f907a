package accounts

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"hash"
	"math/big"
	"strconv"
	"strings"

	"drover/internal/fault"
)

// crypt64 is the alphabet of crypt(5)'s hashes.
const crypt64 = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

const (
	defaultRounds = 5000
	minRounds     = 1000
	maxRounds     = 999999999
	// callRounds bounds the work of one call: some seconds.
	callRounds  = 5000000
	maxPassword = 512 // bytes; the work grows with its square
	maxSalt     = 16
)

// roll is a random number below n.
func roll(n int) (int, error) {
	i, err := rand.Int(rand.Reader, big.NewInt(int64(n)))
	if err != nil {
		return 0, err
	}
	return int(i.Int64()), nil
}

// newSalt is a random salt.
func (h *host) newSalt(n int) (string, error) {
	b := make([]byte, n)
	for i := range b {
		j, err := h.roll(len(crypt64))
		if err != nil {
			return "", err
		}
		b[i] = crypt64[j]
	}
	return string(b), nil
}

// shaCrypt hashes a password as crypt(3) does with $5$ and $6$, by Ulrich Drepper's specification
// "Unix crypt using SHA-256 and SHA-512". The salt may begin with "rounds=N$".
func shaCrypt(password, salt string, long bool) (string, error) {
	if len(password) > maxPassword || strings.ContainsRune(password, 0) {
		return "", fault.Invalid("bad_password", "a password must have at most %d bytes and no NUL", maxPassword)
	}
	rounds, custom := defaultRounds, false
	if rest, ok := strings.CutPrefix(salt, "rounds="); ok {
		number, after, ok := strings.Cut(rest, "$")
		n, err := strconv.ParseUint(number, 10, 32)
		if !ok || err != nil {
			return "", fault.Invalid("bad_salt", "%q is no salt", salt)
		}
		if n > callRounds {
			return "", fault.TooLarge("bad_salt", "%d rounds are too many, at most %d", n, callRounds)
		}
		rounds, custom, salt = min(max(int(n), minRounds), maxRounds), true, after
	}
	salt, _, _ = strings.Cut(salt, "$")
	salt = salt[:min(len(salt), maxSalt)]
	if strings.ContainsAny(salt, ":\n\r\x00!*") {
		return "", fault.Invalid("bad_salt", "%q is no salt", salt)
	}
	fresh, id, size := sha256.New, "$5$", sha256.Size
	if long {
		fresh, id, size = sha512.New, "$6$", sha512.Size
	}
	sum := digest([]byte(password), []byte(salt), rounds, fresh, size)
	var b strings.Builder
	b.WriteString(id)
	if custom {
		b.WriteString("rounds=" + strconv.Itoa(rounds) + "$")
	}
	b.WriteString(salt + "$")
	if long {
		encode512(&b, sum)
	} else {
		encode256(&b, sum)
	}
	return b.String(), nil
}

// digest is the specification's steps 1 to 21.
func digest(p, s []byte, rounds int, fresh func() hash.Hash, size int) []byte {
	write := func(h hash.Hash, parts ...[]byte) {
		for _, b := range parts {
			h.Write(b) // a hash never fails to take bytes
		}
	}
	b := fresh()
	write(b, p, s, p)
	sumB := b.Sum(nil)

	a := fresh()
	write(a, p, s)
	left := len(p)
	for ; left > size; left -= size {
		write(a, sumB)
	}
	write(a, sumB[:left])
	for n := len(p); n > 0; n >>= 1 {
		if n&1 == 1 {
			write(a, sumB)
		} else {
			write(a, p)
		}
	}
	sum := a.Sum(nil)

	repeat := func(d []byte, n int) []byte {
		out := make([]byte, 0, n)
		for ; n > size; n -= size {
			out = append(out, d...)
		}
		return append(out, d[:n]...)
	}
	dp := fresh()
	for range len(p) {
		write(dp, p)
	}
	seqP := repeat(dp.Sum(nil), len(p))
	ds := fresh()
	for range 16 + int(sum[0]) {
		write(ds, s)
	}
	seqS := repeat(ds.Sum(nil), len(s))

	for i := range rounds {
		c := fresh()
		if i&1 == 1 {
			write(c, seqP)
		} else {
			write(c, sum)
		}
		if i%3 != 0 {
			write(c, seqS)
		}
		if i%7 != 0 {
			write(c, seqP)
		}
		if i&1 == 1 {
			write(c, sum)
		} else {
			write(c, seqP)
		}
		sum = c.Sum(sum[:0])
	}
	return sum
}

// group64 writes n characters of three bytes.
func group64(b *strings.Builder, b2, b1, b0 byte, n int) {
	w := uint32(b2)<<16 | uint32(b1)<<8 | uint32(b0)
	for range n {
		b.WriteByte(crypt64[w&0x3f])
		w >>= 6
	}
}

// encode512 takes bytes i, i+21, i+42, turned on by one place each time.
func encode512(b *strings.Builder, d []byte) {
	i, j, k := 0, 21, 42
	for range 21 {
		group64(b, d[i], d[j], d[k], 4)
		i, j, k = j+1, k+1, i+1
	}
	group64(b, 0, 0, d[63], 2)
}

// encode256 takes bytes i, i+10, i+20, turned the other way.
func encode256(b *strings.Builder, d []byte) {
	i, j, k := 0, 10, 20
	for range 10 {
		group64(b, d[i], d[j], d[k], 4)
		i, j, k = k+1, i+1, j+1
	}
	group64(b, 0, d[31], d[30], 3)
}
