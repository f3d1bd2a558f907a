package selector

import "math/bits"

// Set is a set of hosts by their numbers, as bits. The zero Set is empty.
type Set []uint64

// maxID is the highest number of a host. They count from 1; one set of all takes 2 MiB.
const maxID = 1 << 24

// Add puts a host in. What cannot be the number of a host, below 0 or above 1<<24, stays out.
func (s *Set) Add(id int64) {
	if id < 0 || id > maxID {
		return
	}
	if n := int(id>>6) + 1; n > len(*s) {
		*s = append(*s, make(Set, n-len(*s))...)
	}
	(*s)[id>>6] |= 1 << (id & 63)
}

// Has tells whether a host is in.
func (s Set) Has(id int64) bool {
	return id >= 0 && int(id>>6) < len(s) && s[id>>6]&(1<<(id&63)) != 0
}

// Len is how many are in.
func (s Set) Len() (n int) {
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}

// Clone is a copy.
func (s Set) Clone() Set { return append(Set(nil), s...) }

// Or puts all of o in.
func (s *Set) Or(o Set) {
	for len(*s) < len(o) {
		*s = append(*s, 0)
	}
	for i, w := range o {
		(*s)[i] |= w
	}
}

// And keeps what is in o too.
func (s *Set) And(o Set) {
	for i := range *s {
		if i < len(o) {
			(*s)[i] &= o[i]
		} else {
			(*s)[i] = 0
		}
	}
}

// AndNot takes all of o out.
func (s *Set) AndNot(o Set) {
	for i := range min(len(*s), len(o)) {
		(*s)[i] &^= o[i]
	}
}

// IDs are the hosts, in order.
func (s Set) IDs() []int64 {
	out := make([]int64, 0, s.Len())
	for i, w := range s {
		for ; w != 0; w &= w - 1 {
			out = append(out, int64(i<<6+bits.TrailingZeros64(w)))
		}
	}
	return out
}
