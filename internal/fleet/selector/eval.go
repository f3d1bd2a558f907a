package selector

import "drover/internal/fault"

// Eval gives the hosts of all that a tree means. leaf answers a leaf, which it must not keep; it is
// not asked where the answer cannot matter. What it gives beyond all is left out.
func Eval(n *Node, all Set, leaf func(*Leaf) (Set, error)) (Set, error) {
	e := &evaluation{all: all, size: all.Len(), leaf: leaf, trial: &trial{}}
	return e.set(n)
}

type evaluation struct {
	all   Set
	size  int
	leaf  func(*Leaf) (Set, error)
	trial *trial // of this evaluation: the tree may be evaluated several times at once
}

// set makes a set of its own for each node.
func (e *evaluation) set(n *Node) (Set, error) {
	if n.Op == IsLeaf {
		l := *n.Leaf
		l.trial = e.trial
		got, err := e.leaf(&l)
		if err != nil {
			return nil, err
		}
		if e.trial.failed.Load() {
			return nil, fault.Invalid("target_slow", "column %d: the pattern in %s takes too long", n.Col, short(l.String())).
				Fix("write it without repetitions inside of repetitions, and without looking ahead or behind")
		}
		s := e.all.Clone()
		s.And(got)
		return s, nil
	}
	s, err := e.set(n.Kids[0])
	if err != nil {
		return nil, err
	}
	if n.Op == Not {
		rest := e.all.Clone()
		rest.AndNot(s)
		return rest, nil
	}
	for _, k := range n.Kids[1:] {
		if size := s.Len(); n.Op == And && size == 0 || n.Op == Or && size == e.size {
			break
		}
		other, err := e.set(k)
		if err != nil {
			return nil, err
		}
		if n.Op == And {
			s.And(other)
		} else {
			s.Or(other)
		}
	}
	return s, nil
}
