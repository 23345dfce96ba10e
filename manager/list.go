package manager

// A list is a queue through its members, so that one that leaves from the
// middle leaves at once. The zero list is empty.
type list[T any] struct {
	first, last *link[T]
	n           int
}

// A link is a member's place in one list; of is the member.
type link[T any] struct {
	prev, next *link[T]
	of         T
	in         bool
}

func (l *list[T]) pushBack(x *link[T]) { l.insert(x, l.last, nil) }

func (l *list[T]) pushFront(x *link[T]) { l.insert(x, nil, l.first) }

func (l *list[T]) insert(x, prev, next *link[T]) {
	x.prev, x.next, x.in = prev, next, true
	if prev != nil {
		prev.next = x
	} else {
		l.first = x
	}
	if next != nil {
		next.prev = x
	} else {
		l.last = x
	}
	l.n++
}

// pop takes the first member off, if there is one.
func (l *list[T]) pop() (first T, ok bool) {
	x := l.first
	if x == nil {
		return first, false
	}
	l.remove(x)
	return x.of, true
}

// remove reports whether x was in the list.
func (l *list[T]) remove(x *link[T]) bool {
	if !x.in {
		return false
	}
	if x.prev != nil {
		x.prev.next = x.next
	} else {
		l.first = x.next
	}
	if x.next != nil {
		x.next.prev = x.prev
	} else {
		l.last = x.prev
	}
	x.prev, x.next, x.in = nil, nil, false
	l.n--
	return true
}
