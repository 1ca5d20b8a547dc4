package plugins

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins/internal/pb"
)

// What crosses the border of a question, in pairs. Credentials do, and so no
// error and no log may have a question in it.

var topicsToWire = map[backends.Topic]pb.Question_Topic{
	backends.AboutConnection: pb.Question_CONNECTION,
	backends.AboutHELO:       pb.Question_HELO,
	backends.AboutSender:     pb.Question_SENDER,
	backends.AboutRecipient:  pb.Question_RECIPIENT,
	backends.AboutAUTH:       pb.Question_AUTH,
	backends.AboutSCRAM:      pb.Question_SCRAM,
	backends.AboutVRFY:       pb.Question_VRFY,
	backends.AboutEXPN:       pb.Question_EXPN,
}

// topicFromWire returns the zero Topic for one that is not known.
func topicFromWire(wire pb.Question_Topic) backends.Topic {
	for topic, w := range topicsToWire {
		if w == wire {
			return topic
		}
	}
	return 0
}

// announcement is what b can be asked about.
func announcement(b backends.Backend) (announced []pb.Question_Topic) {
	for topic, wire := range topicsToWire {
		if backends.Answers(b, topic) {
			announced = append(announced, wire)
		}
	}
	return announced
}

func announcementFromWire(announced []pb.Question_Topic) map[backends.Topic]bool {
	topics := map[backends.Topic]bool{}
	for _, wire := range announced {
		if t := topicFromWire(wire); t != 0 {
			topics[t] = true
		}
	}
	return topics
}

func questionToWire(q backends.Question) *pb.Question {
	question := &pb.Question{
		Topic:   topicsToWire[q.About],
		Session: sessionToWire(*q.Session),
		Text:    []byte(q.Text),
	}
	if e := q.Envelope; e != nil {
		question.Envelope = &pb.Envelope{Sender: []byte(e.Sender), Params: toBytes(e.Params)}
	}
	switch c := q.Credentials; q.About {
	case backends.AboutRecipient:
		question.Recipient = recipientToWire(q.Recipient)
	case backends.AboutAUTH:
		question.Credentials = &pb.Credentials{
			Mechanism: c.Mechanism, Identity: []byte(c.Identity), User: []byte(c.User), Password: []byte(c.Password),
		}
	}
	return question
}

func questionFromWire(question *pb.Question) backends.Question {
	session, c := sessionFromWire(question.GetSession()), question.GetCredentials()
	q := backends.Question{
		About:     topicFromWire(question.GetTopic()),
		Session:   &session,
		Recipient: recipientFromWire(question.GetRecipient()),
		Credentials: backends.Credentials{
			Mechanism: c.GetMechanism(), Identity: string(c.GetIdentity()), User: string(c.GetUser()), Password: string(c.GetPassword()),
		},
		Text: string(question.GetText()),
	}
	if e := question.GetEnvelope(); e != nil {
		q.Envelope = &backends.Envelope{Sender: string(e.Sender), Params: toStrings(e.Params)}
	}
	return q
}

// unansweredToWire says what an error means, as errorToWire does.
func unansweredToWire(err error) *pb.Answer {
	if s := backends.StatusOf(err); s != backends.TryLater {
		return &pb.Answer{Result: &pb.Answer_Status{Status: statusToWire(s)}}
	}
	return &pb.Answer{Result: &pb.Answer_Failure{Failure: toUTF8(err.Error())}}
}

func answerToWire(a backends.Answer) *pb.Answer {
	switch v := a.SCRAM; {
	case a.User != "":
		return &pb.Answer{Result: &pb.Answer_User{User: []byte(a.User)}}
	case !v.IsZero():
		return &pb.Answer{Result: &pb.Answer_Scram{Scram: &pb.SCRAMVerifier{
			Salt: v.Salt, Iterations: int64(v.Iterations), StoredKey: v.StoredKey, ServerKey: v.ServerKey, User: []byte(v.User),
		}}}
	case a.Members != nil:
		return &pb.Answer{Result: &pb.Answer_Members{Members: &pb.Members{Members: toBytes(a.Members)}}}
	case a.Opinion != backends.Opinion{}:
		return &pb.Answer{Result: &pb.Answer_Opinion{Opinion: opinionToWire(a.Opinion)}}
	}
	return &pb.Answer{}
}

func opinionToWire(o backends.Opinion) *pb.Opinion {
	opinion := &pb.Opinion{Valid: o.For.Milliseconds(), Key: []byte(o.Key)}
	if !o.Status.IsZero() {
		opinion.Status = statusToWire(o.Status)
	}
	return opinion
}

// answerFromWire returns what the backend has returned. An error that is no
// Status may also say that the plugin has broken the protocol.
func answerFromWire(answer *pb.Answer, about backends.Topic) (a backends.Answer, err error) {
	fits := true
	switch r := answer.GetResult().(type) {
	case *pb.Answer_Failure:
		return a, errors.New(cut(r.Failure))
	case *pb.Answer_Status:
		s, err := statusFromWire(r.Status)
		if err != nil {
			return a, err
		}
		return a, s
	case *pb.Answer_Opinion:
		fits = about <= backends.AboutRecipient || about == backends.AboutVRFY
		a.Opinion, err = opinionFromWire(r.Opinion)
	case *pb.Answer_User:
		fits = about == backends.AboutAUTH
		a.User, err = textFromWire("user", r.User)
	case *pb.Answer_Scram:
		fits = about == backends.AboutSCRAM
		a.SCRAM, err = verifierFromWire(r.Scram)
	case *pb.Answer_Members:
		fits = about == backends.AboutEXPN
		a.Members = append([]string{}, toStrings(r.Members.GetMembers())...) // no members are an answer, too
	}
	if !fits {
		err = errors.New("protocol: an answer to another question")
	}
	if err != nil {
		return backends.Answer{}, err
	}
	return a, nil
}

func opinionFromWire(opinion *pb.Opinion) (o backends.Opinion, err error) {
	if opinion.GetStatus() != nil {
		if o.Status, err = statusFromWire(opinion.Status); err != nil {
			return o, err
		}
	}
	const most = int64(math.MaxInt64 / time.Millisecond)
	if valid := opinion.GetValid(); valid < 0 || valid > most {
		return o, fmt.Errorf("protocol: an opinion that is valid for %d ms", valid)
	}
	o.For = time.Duration(opinion.GetValid()) * time.Millisecond
	if len(opinion.GetKey()) > 0 {
		o.Key, err = textFromWire("key", opinion.Key)
	}
	return o, err
}

func verifierFromWire(v *pb.SCRAMVerifier) (backends.SCRAMVerifier, error) {
	if len(v.GetSalt()) == 0 || len(v.GetSalt()) > maxText || v.GetIterations() < 1 || v.GetIterations() > math.MaxInt32 ||
		len(v.GetStoredKey()) != sha256.Size || len(v.GetServerKey()) != sha256.Size || len(v.GetUser()) > maxText {
		return backends.SCRAMVerifier{}, fmt.Errorf("protocol: a verifier with a salt of %d octets, %d iterations, keys of %d and %d octets, and a user of %d",
			len(v.GetSalt()), v.GetIterations(), len(v.GetStoredKey()), len(v.GetServerKey()), len(v.GetUser()))
	}
	return backends.SCRAMVerifier{
		User: string(v.GetUser()), Salt: v.GetSalt(), Iterations: int(v.GetIterations()), StoredKey: v.GetStoredKey(), ServerKey: v.GetServerKey(),
	}, nil
}

// textFromWire refuses what would be of another meaning if it were cut.
func textFromWire(what string, text []byte) (string, error) {
	if len(text) == 0 || len(text) > maxText {
		return "", fmt.Errorf("protocol: a %s of %d octets, want 1 to %d", what, len(text), maxText)
	}
	return string(text), nil
}
