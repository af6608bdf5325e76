"""One distillation step in Keras 3 on TensorFlow, timed. Prints one JSON line, with `error` where
it failed.

The step is Keras's own compiled train step (`compile`, `compute_loss`, `train_step`) inside one
`tf.function`, several steps to a call as with `steps_per_execution`; the rows lie in TensorFlow's
memory, so that no input pipeline is timed.
"""

import argparse
import json
import os
import time

PAIRS = {
    "hinton": ([784, 1200, 1200, 10], [784, 800, 800, 10], 128),
    "small": ([64, 128, 128, 10], [64, 32, 10], 64),
}
ROWS, TEMPERATURE, HARD, SOFT, RATE = 4096, 4.0, 0.1, 0.9, 1e-4


def run(args):
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    import tensorflow as tf

    yield "version", f"{keras.__version__} on TensorFlow {tf.__version__}"
    gpus = tf.config.list_physical_devices("GPU")
    details = tf.config.experimental.get_device_details(gpus[0]) if gpus else {}
    yield "device", details.get("device_name", "gpu") if gpus else "cpu"
    yield "threads", None if gpus else os.cpu_count()
    keras.utils.set_random_seed(5)
    teacher_sizes, student_sizes, batch = PAIRS[args.pair]

    def mlp(sizes):
        hidden = [keras.layers.Dense(n, "relu", kernel_initializer="he_normal") for n in sizes[1:-1]]
        last = keras.layers.Dense(sizes[-1], kernel_initializer="he_normal")
        return keras.Sequential([keras.Input((sizes[0],)), *hidden, last])

    class Distiller(keras.Model):
        def __init__(self):
            super().__init__()
            self.teacher, self.student = mlp(teacher_sizes), mlp(student_sizes)
            self.teacher.trainable = False

        def call(self, x, training=False):
            return self.student(x, training=training)

        def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
            log_p = tf.nn.log_softmax(self.teacher(x, training=False) / TEMPERATURE)
            log_q = tf.nn.log_softmax(y_pred / TEMPERATURE)
            soft = tf.reduce_mean(tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), axis=1))
            hard = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, y_pred))
            return HARD * hard + SOFT * TEMPERATURE**2 * soft

    x = tf.cast(tf.random.uniform((ROWS, teacher_sizes[0]), 0, 256, tf.int32), tf.float32) / 255
    y = tf.range(ROWS) % 10
    model = Distiller()
    model.compile(optimizer=keras.optimizers.Adam(RATE, epsilon=1e-8), jit_compile=False)
    model(x[:batch])
    model.optimizer.build(model.trainable_variables)

    @tf.function(jit_compile=args.xla)
    def step(rows, labels):
        return model.train_step((rows, labels))["loss"]

    @tf.function
    def steps_from(first, count):
        loss = 0.0
        for i in tf.range(first, first + count):
            start = i % (ROWS // batch) * batch
            rows = tf.slice(x, [start, 0], [batch, x.shape[1]])
            labels = tf.slice(y, [start], [batch])
            loss = step(rows, labels)
        return loss

    done = 0

    def steps(count):
        nonlocal done
        loss = steps_from(tf.constant(done), tf.constant(count)).numpy()
        done += count
        return float(loss)

    first = steps(1)
    rates = measure(steps, args)
    last = steps(1)
    if not last < first:
        raise RuntimeError(f"the loss went from {first} to {last}")
    yield "steps_per_second", rates[len(rates) // 2]
    yield "rates", rates
    yield "loss", [first, last]


def measure(steps, args):
    """Warms up, then `repeat` times `seconds`; steps per second, sorted."""
    began = time.perf_counter()
    once = 1.0
    while time.perf_counter() - began < min(args.seconds, 2.0):
        t = time.perf_counter()
        steps(10)
        once = (time.perf_counter() - t) / 10
    chunk = max(1, min(1000, int(0.25 * min(args.seconds, 1.0) / once)))
    rates = []
    for _ in range(args.repeat):
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < args.seconds:
            steps(chunk)
            count += chunk
        rates.append(count / (time.perf_counter() - began))
    return sorted(rates)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", choices=PAIRS, default="hinton")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each repeat")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--xla", action="store_true", help="compile the step with XLA")
    args = parser.parse_args()
    line = {"peer": "keras-xla" if args.xla else "keras", "pair": args.pair}
    try:
        line.update(run(args))  # what was yielded before an error stays
    except Exception as error:  # whatever a peer does wrong is its result
        line["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
    print(json.dumps(line))


if __name__ == "__main__":
    main()
