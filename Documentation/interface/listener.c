// SPDX-License-Identifier: GPL-2.0
/*
 * A listener for process events.  It shows existing and new sessions, processes
 * that exit, and losses, until it is interrupted.
 *
 * It needs the headers of a kernel that has PROC_CN_FEATURE_STATE:
 *
 *	cc -I usr/include listener.c -o listener
 */

#include <err.h>
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <linux/cn_proc.h>
#include <linux/connector.h>
#include <linux/netlink.h>

/* The features that this program requires. */
#define FEATURES (PROC_CN_FEATURE_ACK | PROC_CN_FEATURE_SEQ | \
		  PROC_CN_FEATURE_SID_ORIGIN | PROC_CN_FEATURE_PROCESSES | \
		  PROC_CN_FEATURE_IDENTITY | PROC_CN_FEATURE_BATCH | \
		  PROC_CN_FEATURE_STATE)

#define MAX_CPUS 8192
#define NO_CPU ((__u32)-1)

#define ANSWER_LIMIT_MS 1000

/* An existing session, by its leader. */
struct session {
	struct session *next;
	__u64 process;		/* the leader, by its identity */
	int pid;
	bool reported;		/* since STATE was sent */
	bool ended;		/* since then: it may still be reported */
};

struct listener {
	int sock;
	__u32 request;		/* number of the last request */
	bool asked;		/* STATE was sent, and not answered yet */
	bool lost;		/* events, and STATE was not sent since */
	__u32 next[MAX_CPUS];	/* number of each CPU's next message */
	struct session *sessions;
};

union datagram {
	struct nlmsghdr first;
	char bytes[PROC_CN_BATCH_SIZE];
};

struct message {
	__u32 seq;
	__u32 ack;
	struct proc_event event;
	struct proc_event_identity identity;	/* 0 in answers */
};

static void open_socket(struct listener *listener)
{
	struct sockaddr_nl address = {
		.nl_family = AF_NETLINK,
		.nl_groups = CN_IDX_PROC,
	};

	listener->sock = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC,
				NETLINK_CONNECTOR);
	if (listener->sock < 0)
		err(EXIT_FAILURE, "socket");
	if (bind(listener->sock, (struct sockaddr *)&address, sizeof(address)))
		err(EXIT_FAILURE, "bind");
}

/* Sends an enum proc_cn_mcast_op or a struct proc_listen. */
static void request(struct listener *listener, const void *data, __u16 len)
{
	union {
		struct nlmsghdr header;
		char bytes[NLMSG_SPACE(sizeof(struct cn_msg) +
				       sizeof(struct proc_listen))];
	} buffer = {};
	struct cn_msg *msg = NLMSG_DATA(&buffer.header);

	buffer.header.nlmsg_len = NLMSG_LENGTH(sizeof(*msg) + len);
	buffer.header.nlmsg_type = NLMSG_DONE;
	msg->id.idx = CN_IDX_PROC;
	msg->id.val = CN_VAL_PROC;
	msg->seq = ++listener->request;
	msg->len = len;
	memcpy(msg->data, data, len);

	if (send(listener->sock, &buffer, buffer.header.nlmsg_len, 0) < 0)
		err(EXIT_FAILURE, "send");
}

/*
 * Reads one datagram.  Returns its length, 0 if it is not from the kernel, or
 * -1 with errno EAGAIN if there is none, and ENOBUFS if events were lost.
 */
static ssize_t receive(const struct listener *listener,
		       union datagram *datagram)
{
	struct sockaddr_nl sender;
	socklen_t sender_len = sizeof(sender);
	ssize_t len;

	len = recvfrom(listener->sock, datagram, sizeof(*datagram),
		       MSG_DONTWAIT, (struct sockaddr *)&sender, &sender_len);
	if (len > 0 && sender.nl_pid != 0)
		return 0;
	return len;
}

/* Copies an event or an answer.  Returns false if it is something else. */
static bool parse(const struct nlmsghdr *header, struct message *message)
{
	const struct cn_msg *msg = NLMSG_DATA(header);
	const __u32 len = NLMSG_LENGTH(sizeof(*msg) + sizeof(message->event));

	if (header->nlmsg_len < len ||
	    msg->id.idx != CN_IDX_PROC || msg->id.val != CN_VAL_PROC)
		return false;

	memset(message, 0, sizeof(*message));
	message->seq = msg->seq;
	message->ack = msg->ack;
	/* They are not aligned in the datagram. */
	memcpy(&message->event, msg->data, sizeof(message->event));
	if (header->nlmsg_len >= len + sizeof(message->identity))
		memcpy(&message->identity, msg->data + sizeof(message->event),
		       sizeof(message->identity));
	return true;
}

/* Whether this is the answer to the last request. */
static bool is_answer(const struct listener *listener,
		      const struct message *message)
{
	return message->event.what == PROC_EVENT_NONE &&
	       message->seq == listener->request && message->ack == 1;
}

/* Sends LISTEN, and checks the answer. */
static void start(struct listener *listener, __u32 mask)
{
	struct proc_listen listen = {
		.mcast_op = PROC_CN_MCAST_LISTEN,
		.event_type = mask,
		.flags = PROC_CN_LISTEN_PROCESSES | PROC_CN_LISTEN_IDENTITY |
			 PROC_CN_LISTEN_BATCH,
	};
	struct pollfd pollfd = { .fd = listener->sock, .events = POLLIN };
	const struct proc_event *event;
	union datagram datagram;
	struct message answer;
	__u32 features;
	ssize_t len;

	request(listener, &listen, sizeof(listen));

	/* Kernels with PROC_CN_FEATURE_ACK send nothing before the answer. */
	poll(&pollfd, 1, ANSWER_LIMIT_MS);
	len = receive(listener, &datagram);
	if (!NLMSG_OK(&datagram.first, len) ||
	    !parse(&datagram.first, &answer) || !is_answer(listener, &answer))
		errx(EXIT_FAILURE, "this kernel does not answer requests");

	event = &answer.event;
	features = event->event_data.ack.features;
	if ((features & FEATURES) != FEATURES)
		errx(EXIT_FAILURE, "this kernel has features 0x%x only",
		     features);
	errno = event->event_data.ack.err;
	if (errno)
		err(EXIT_FAILURE, "cannot listen");

	/* The numbers of this CPU start after the answer's, all others at 0. */
	if (event->cpu < MAX_CPUS)
		listener->next[event->cpu] = answer.seq + 1;
	printf("listening, features 0x%x\n", features);
}

/* Detects events that were lost before a message. */
static void check_number(struct listener *listener,
			 const struct message *message)
{
	__u32 cpu = message->event.cpu;
	__u32 gap;

	if (cpu == NO_CPU || cpu >= MAX_CPUS)
		return;

	gap = message->seq - listener->next[cpu];
	listener->next[cpu] = message->seq + 1;
	if (gap) {
		printf("lost %u events of CPU %u\n", gap, cpu);
		listener->lost = true;
	}
}

/* Ends a line with the identity of a process, which is never reused. */
static void show_identity(const struct proc_event_identity *identity)
{
	printf(" (pidfd inode %llu, cgroup %llu)\n",
	       (unsigned long long)identity->process,
	       (unsigned long long)identity->cgroup);
}

/* Returns the place of a leader's session in the list, or the list's end. */
static struct session **find(struct listener *listener, __u64 process)
{
	struct session **at = &listener->sessions;

	while (*at && (*at)->process != process)
		at = &(*at)->next;
	return at;
}

/* Adds a session to the list, if it is not there, and marks it as reported. */
static struct session *add(struct listener *listener, __u64 process, int pid)
{
	struct session **at = find(listener, process);

	if (!*at) {
		*at = calloc(1, sizeof(**at));
		if (!*at)
			err(EXIT_FAILURE, "calloc");
		(*at)->process = process;
		(*at)->pid = pid;
	}
	(*at)->reported = true;
	return *at;
}

static void remove_at(struct session **at)
{
	struct session *session = *at;

	*at = session->next;
	free(session);
}

/* Sends STATE, when nothing is left to read. */
static void ask(struct listener *listener)
{
	const enum proc_cn_mcast_op op = PROC_CN_MCAST_STATE;
	struct session *session;

	for (session = listener->sessions; session; session = session->next)
		session->reported = false;
	listener->lost = false;
	listener->asked = true;
	request(listener, &op, sizeof(op));
}

/*
 * A session that was not reported has ended, and its PROC_EVENT_EXIT was
 * lost.
 */
static void end_state(struct listener *listener)
{
	struct session **at = &listener->sessions;

	listener->asked = false;
	while (*at) {
		if ((*at)->reported && !(*at)->ended) {
			at = &(*at)->next;
			continue;
		}
		if (!(*at)->ended)
			printf("session %d is gone\n", (*at)->pid);
		remove_at(at);
	}
}

static void show_exit(struct listener *listener, const struct message *message)
{
	const struct exit_proc_event *exit = &message->event.event_data.exit;
	struct session **at = find(listener, message->identity.process);

	if (WIFSIGNALED(exit->exit_code))
		printf("process %d was killed by signal %d",
		       exit->process_tgid, WTERMSIG(exit->exit_code));
	else
		printf("process %d exited with status %d",
		       exit->process_tgid, WEXITSTATUS(exit->exit_code));
	show_identity(&message->identity);

	/* The state may still contain it: remember that it has ended. */
	if (listener->asked)
		add(listener, message->identity.process,
		    exit->process_tgid)->ended = true;
	else if (*at)
		remove_at(at);
}

static void show_answer(struct listener *listener,
			const struct message *message)
{
	/* It answers an earlier request. */
	if (!is_answer(listener, message))
		return;

	errno = message->event.event_data.ack.err;
	if (!errno) {
		end_state(listener);
		printf("%u processes are there\n",
		       message->event.event_data.ack.processes);
	} else if (errno != EBUSY) {
		err(EXIT_FAILURE, "cannot know what is there");
	}
}

static void show(struct listener *listener, const struct message *message)
{
	const struct proc_event *event = &message->event;
	const struct sid_proc_event *sid = &event->event_data.sid;
	const struct process_proc_event *it = &event->event_data.process;
	const __u64 process = message->identity.process;

	switch (event->what) {
	case PROC_EVENT_NONE:
		show_answer(listener, message);
		break;
	case PROC_EVENT_SID:
		add(listener, process, sid->process_tgid);
		printf("session %d began: child of %d, left session %d and process group %d",
		       sid->process_tgid, sid->parent_tgid, sid->session,
		       sid->process_group);
		show_identity(&message->identity);
		break;
	case PROC_EVENT_EXIT:
		show_exit(listener, message);
		break;
	case PROC_EVENT_PROCESS:
		/* A session has the number of its leader. */
		if (it->session != it->process_tgid)
			break;
		if (!*find(listener, process)) {
			printf("session %d is there", it->session);
			show_identity(&message->identity);
		}
		add(listener, process, it->process_tgid);
		break;
	default:
		break;
	}
}

/* Goes through the messages of a datagram. */
static void walk(struct listener *listener, const union datagram *datagram,
		 ssize_t len)
{
	const struct nlmsghdr *header;
	struct message message;

	for (header = &datagram->first; NLMSG_OK(header, len);
	     header = NLMSG_NEXT(header, len)) {
		if (parse(header, &message)) {
			check_number(listener, &message);
			show(listener, &message);
		}
	}
}

/* Reads all messages, and then sends STATE if events were lost. */
static void drain(struct listener *listener)
{
	union datagram datagram;

	for (;;) {
		ssize_t len = receive(listener, &datagram);

		if (len >= 0) {
			walk(listener, &datagram, len);
		} else if (errno == ENOBUFS) {
			puts("no room for more events");
			listener->lost = true;
		} else if (errno == EAGAIN) {
			break;
		} else if (errno != EINTR) {
			err(EXIT_FAILURE, "recvfrom");
		}
	}

	/*
	 * STATE is not sent earlier: until the queue is empty, new events are
	 * also lost.  If STATE was sent before, its answer was read by now,
	 * unless the state stopped.
	 */
	if (listener->lost || listener->asked)
		ask(listener);
}

int main(void)
{
	static struct listener listener;
	struct pollfd pollfd = { .events = POLLIN };

	setvbuf(stdout, NULL, _IOLBF, 0);
	open_socket(&listener);
	start(&listener, PROC_EVENT_SID | PROC_EVENT_EXIT);

	/* Start as after a loss: with the existing processes. */
	listener.lost = true;
	pollfd.fd = listener.sock;
	for (;;) {
		drain(&listener);
		if (poll(&pollfd, 1, -1) < 0 && errno != EINTR)
			err(EXIT_FAILURE, "poll");
	}
}
