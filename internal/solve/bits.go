package solve

import "math/bits"

// bitset is a set of small numbers.
type bitset []uint64

func newBits(n int) bitset { return make(bitset, (n+63)/64) }

func (s bitset) has(i uint32) bool {
	w := int(i >> 6)
	return w < len(s) && s[w]&(1<<(i&63)) != 0
}

func (s bitset) set(i uint32)   { s[i>>6] |= 1 << (i & 63) }
func (s bitset) clear(i uint32) { s[i>>6] &^= 1 << (i & 63) }

// sized is a copy with room for n numbers.
func (s bitset) sized(n int) bitset {
	t := newBits(n)
	copy(t, s)
	return t
}

func (s bitset) word(i int) uint64 {
	if i < len(s) {
		return s[i]
	}
	return 0
}

// without is what is in s and not in t.
func (s bitset) without(t bitset) bitset {
	u := make(bitset, len(s))
	for i, w := range s {
		u[i] = w &^ t.word(i)
	}
	return u
}

func (s bitset) meets(t bitset) bool {
	for i, w := range s {
		if w&t.word(i) != 0 {
			return true
		}
	}
	return false
}

func (s bitset) count() (n int) {
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}

// all goes over the members in ascending order.
func (s bitset) all(yield func(uint32) bool) {
	for i, w := range s {
		for ; w != 0; w &= w - 1 {
			if !yield(uint32(i<<6 + bits.TrailingZeros64(w))) {
				return
			}
		}
	}
}
