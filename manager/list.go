package manager

import "container/ring"

// A list is a queue through its members, so that one that leaves from the
// middle leaves at once, and nothing is allocated. The zero list is empty.
type list[T any] struct {
	root ring.Ring // before the first, behind the last
	n    int
}

// A link is a member's place in one list, alone while it is in none; its Value
// is the member.
type link = ring.Ring

func (l *list[T]) pushBack(x *link) { l.pushBehind(l.root.Prev(), x) }

func (l *list[T]) pushFront(x *link) { l.pushBehind(&l.root, x) }

func (l *list[T]) pushBehind(at, x *link) {
	at.Link(x)
	l.n++
}

// first is the member that pop takes. The list is not empty.
func (l *list[T]) first() T { return l.root.Next().Value.(T) }

// last is the other end's. The list is not empty.
func (l *list[T]) last() T { return l.root.Prev().Value.(T) }

// pop takes the first member off, if there is one.
func (l *list[T]) pop() (first T, ok bool) {
	if l.n == 0 {
		return first, false
	}
	first = l.first()
	l.remove(l.root.Next())
	return first, true
}

// remove takes x off, if it is in the list.
func (l *list[T]) remove(x *link) {
	if x.Next() != x {
		x.Prev().Unlink(1)
		l.n--
	}
}
